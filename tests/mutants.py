"""The table of ``mutations.py``: for each file, the tests that must notice, and (old text, new text, other tests, why).

The last two may be left out. ``why`` is of one that no test can tell from the code as it is: seven of 295.
"""

from __future__ import annotations


def of(file: str, *names: str) -> str:
    """Node ids of tests of one file."""
    return " ".join(f"{file}::test_{name}" for name in names)


CONFORMITY = of(
    "functional/test_conformity.py",
    "conformity_equals_the_mean_of_the_cosine_matrix[57-16]",
    "rounding_does_not_lift_a_mean_cosine_above_one",
    "estimated_conformity_is_the_cosine_to_the_raw_mean",
    "conformity_fit_equals_numpy_polyfit_both_ways",
    "norm_statistics_equal_numpy",
    "a_line_is_fitted_where_conformity_varies_beyond_rounding",
)
LOSSES = of(
    "functional/test_contrastive.py",
    "blocks_equal_the_value_and_gradient_at_once[dtype1-630]",
    "scale_of_the_embeddings_does_not_matter",
    "shift_by_all_of_the_mean_centres_and_by_none_changes_nothing",
)
SWEEP = of(
    "functional/test_contrastive.py",
    "intervals_of_the_kl_by_hand",
    "the_interval_of_a_loss_near_zero_is_not_below_it",
    "redrawn_conformities_equal_those_of_the_redrawn_rows",
    "redrawn_divergences_are_those_of_the_redrawn_pairs",
    "draws_in_parts_are_those_at_once",
    "subsampled_losses_are_those_of_the_drawn_pairs_about_their_own_means",
    "subsamples_of_any_share_have_the_spread_of_the_whole",
    "three_thousand_pairs_have_the_spread_of_their_closed_form",
)
REAL_SWEEP = of("functional/test_contrastive.py", "sweep_of_real_pairs_tells_what_can_be_told")
DIVERGENCE = of(
    "functional/test_divergence.py",
    "a_lower_bound_is_told_from_a_quarter_outside_a_thousandth_far_off_or_one_cell_on",
    "a_tail_decides_where_the_floor_moves_the_value_by_a_twentieth_and_beyond_noise",
    "a_tail_is_followed_down_to_a_ten_thousandth_of_a_sample",
    "the_bias_of_a_gaussian_is_that_of_two_parameters",
    "rows_that_are_worth_fewer_are_smoothed_and_corrected_as_fewer",
    "a_narrow_set_is_read_out_in_cells_that_resolve_it",
    "a_reference_varies_where_its_spread_is_above_rounding",
    "what_lies_beyond_the_cells_counts_at_either_end",
    "a_constant_evaluated_set_gives_a_finite_lower_bound_and_a_warning",
)
BIAS = of("functional/test_divergence.py", "the_bias_at_unequal_sizes_is_taken_off")
DIGITS = of("functional/test_density.py", "determinant_and_degrees_of_freedom_agree_with_80_digits")
SMOOTHING = of(
    "functional/test_density.py",
    "the_smoothing_does_not_depend_on_the_width_of_the_cells",
    "gaussian_samples_are_nearly_always_fitted_by_a_gaussian",
)
DENSITY = " ".join(
    (
        of(
            "functional/test_density.py",
            "determinant_and_degrees_of_freedom_agree_with_80_digits[Gaussian-1]",
            "without_a_penalty_that_bites_the_fit_is_the_histogram",
            "under_the_heaviest_penalty_the_fit_is_the_gaussian_of_the_same_moments",
        ),
        DIVERGENCE,
        of(
            "functional/test_divergence.py",
            "the_bias_at_unequal_sizes_is_taken_off[1000]",
            "kl_of_skewed_and_mixed_distributions_is_near_the_integral[gamma]",
            "kl_of_skewed_and_mixed_distributions_is_near_the_integral[mixture]",
        ),
    )
)
GEOMETRY = of(
    "functional/test_geometry.py",
    "figures_equal_numpy_at_any_scale[1.0-dtype1]",
    "gap_equals_numpy_and_takes_sets_without_pairs",
    "tilt_of_a_rotated_ellipse_has_its_closed_form",
    "the_permuted_value_keeps_variances_and_drops_correlations",
    "a_constant_dimension_costs_rank_and_no_figure_is_nan",
)
ROUNDING = of("functional/test_geometry.py", "a_spread_of_a_few_roundings_is_taken_and_of_less_refused")
RANKS = of(
    "functional/test_geometry.py",
    "rank_correlation_equals_scipy",
    "the_interval_of_unrelated_vectors_has_its_closed_form",
)
INTERPOLATION = "functional/test_interpolation.py"
LIKELIHOOD = of(
    "functional/test_likelihood.py",
    "log_likelihood_equals_the_multivariate_normal",
    "shrinkage_moves_the_covariance_towards_a_sphere",
    "frechet_distance_equals_scipy",
)
INFLUENCE = "stream/test_influence.py"
RESAMPLING = "functional/test_resampling.py"
AREA = of("functional/test_separability.py", "area_under_the_curve_equals_scikit_learn")
SEPARABILITY = of(
    "functional/test_separability.py",
    "every_side_of_the_plane_is_that_of_scikit_learn",
    "a_label_is_right_in_99_of_100",
    "the_spread_within_is_followed_down_to_a_millionth_of_the_total",
    "equal_aucs_are_ranked_by_distance",
    "classes_constant_in_a_dimension_are_told_apart_by_it",
    "held_out_accuracy_is_chance_where_the_accuracy_in_sample_flatters",
)
TWO_SAMPLE = "functional/test_two_sample.py"
SCALES = of("functional/test_scales.py", "one_row_out_of_range_is_refused_by_function_and_stream_alike")
CONTRAST = "stream/test_contrast.py"
OVERLAP = of(
    "stream/test_overlap.py",
    "what_is_shared_is_told_from_what_repeats_by_three_errors",
    "pairs_that_are_equal_by_chance_stay_in",
    "a_row_leaves_out_one_pair_at_most",
    "shared_rows_leave_themselves_out_and_the_rest_stays",
    "repeats_that_are_as_common_in_the_reference_are_no_overlap",
    "no_pair_of_one_group_is_compared",
    "equal_rows_are_those_within_a_cosine_of_a_hundred_thousandth",
    "near_pairs_equal_the_cosine_matrix[0.01-24]",
)
MOMENTS = of(
    "stream/test_moments.py",
    "sums_equal_numpy",
    "rows_beyond_a_chunk_keep_their_groups_and_ids",
    "conformity_to_a_direction_equals_numpy",
    "what_lies_beyond_the_cells_is_counted_at_the_ends",
    "the_std_of_conformity_that_does_not_vary_is_zero",
    "second_moment_is_the_sum_of_outer_products",
    "bad_rows_are_counted_and_left_out",
    "places_for_ids_deal_no_rows",
    "self_conformity_error_is_an_explicit_jackknife",
)
ROWS = (
    of(
        "stream/test_moments.py",
        "equal_rows_of_different_groups_are_never_taken_for_copies",
        "of_equal_rows_the_same_one_is_kept_whatever_came_first",
        "a_large_group_pushes_no_other_out_of_the_sample",
        "no_row_of_one_large_group_is_taken_for_a_copy",
    )
    + " stream/test_repeats.py"
)
NORMALIZED = of(
    "stream/test_reference.py",
    "normalized_rows_are_refused_with_the_way_out",
    "rows_near_norm_one_are_not_taken_for_normalized",
)
REFERENCE = of(
    "stream/test_reference.py",
    "fit_equals_numpy",
    "beyond_max_samples_means_stay_exact_and_the_rest_is_marked",
    "the_fit_beyond_max_samples_is_under_the_final_means",
)
STANDING = "stream/test_standing.py"
NULL = of(
    "stream/test_null.py",
    "few_groups_are_permuted_unless_both_sides_have_them",
    "a_redraw_that_spreads_by_a_tenth_of_the_usual_is_kept",
    "redraws_without_a_spread_are_fitted_without_a_warning",
    "values_are_conformities_to_both_sides_together",
    "values_of_rows_in_groups_leave_out_their_bucket",
)
METRICS = of(
    "metrics/test_metrics.py",
    "conformity_equals_numpy_whatever_the_batches[64]",
    "conformity_inside_the_own_set_equals_numpy[64]",
    "norms_equal_numpy_whatever_the_batches[64]",
    "figures_of_the_own_set_are_under_the_mean_of_all_rows",
)
ONE_GROUP = of(
    "metrics/test_metrics.py",
    "one_group_has_no_interval_and_no_floor",
    "one_group_keeps_its_figures_and_has_no_standard_error",
)
ENDS = of("metrics/test_metrics.py", "the_ends_of_ratios_are_those_of_their_logarithms")
ERRORS = of("metrics/test_intervals.py", "standard_errors_of_the_means_of_independent_rows_are_the_textbook_ones")
SHAPES = of(
    "metrics/test_geometry_metrics.py",
    "ellipsoid_geometry_equals_numpy",
    "the_condition_is_nan_where_the_rank_is_below_the_dimension",
    "the_condition_is_nan_where_the_offset_hides_it",
    "modality_gap_equals_brute_force",
    "the_standard_error_of_the_gap_is_that_of_repeated_draws",
)
VERDICTS = of(
    "evaluation/test_verdicts.py",
    "a_verdict_is_judged_by_its_interval_against_the_margin",
    "the_samples_needed_are_those_of_the_formula",
    "a_verdict_in_words",
    "where_the_effect_is_between_the_samples_needed_tell_it_from_the_further_end",
    "a_ratio_is_told_from_one_by_its_logarithm",
    "an_interval_by_a_standard_error_is_that_of_students_t",
)
REQUIREMENTS = of(
    "evaluation/test_verdicts.py",
    "a_requirement_holds_where_every_value_of_the_interval_meets_it",
    "a_figure_whose_uncertainty_is_not_known_meets_nothing",
)
COMPARISON = of("evaluation/test_comparison.py", "a_difference_has_the_error_of_an_explicit_jackknife")

TABLE: list[tuple[str, str, list[tuple[str, ...]]]] = [
    (
        "clipconformity/functional/conformity.py",
        CONFORMITY,
        [
            ("(count * cosine_to_mean - 1) / (count - 1)", "cosine_to_mean"),
            ("(count * cosine_to_mean - 1) / (count - 1)", "(count * cosine_to_mean - 1) / count"),
            ("(count - 1)).clamp(-1, 1)", "(count - 1))"),
            (" + weights[whole:].double() @ rows[whole:].double()", ""),
            ("cosines(values, norms, center / length)", "cosines(values, norms, center)"),
            ("slope = (dx @ dy) / (dx @ dx)", "slope = (dx @ dy) / (dy @ dy)"),
            ("inverse = (dx @ dy) / (dy @ dy)", "inverse = 1 / slope"),
            ("exact.mean() - slope * estimate.mean()", "exact.mean() + slope * estimate.mean()"),
            ("(dx.abs().max() > 1e-7) & (dy", "(dx.abs().max() > 1e-6) & (dy"),
            ("torch.sqrt((dx @ dx) * (dy @ dy))", "(dx @ dx) * (dy @ dy)"),
            ("* (len(ordered) - 1)", "* len(ordered)"),
            (" + (ordered[high] - ordered[low]) * (position - low)", ""),
            ("x.double().std()", "x.double().std(correction=0)"),
        ],
    ),
    (
        "clipconformity/functional/contrastive.py",
        LOSSES,
        [
            ("/ (2 * len(u))", "/ len(u)"),
            ("logits.logsumexp(1) - logits.diagonal(start)", "logits.logsumexp(1) - logits.diagonal()"),
            ("4 * (rows @ whole.T) - 4", "2 * (rows @ whole.T) - 2"),
            ("own.diagonal(start).fill_(True)", "own.diagonal().fill_(True)"),
            ("- math.log(len(u) - 1)", "- math.log(len(u))"),
            ("(u - w).square().sum(1).mean(", "(u - w).square().sum(1).sqrt().mean("),
            ("values - alpha * center", "values + alpha * center"),
        ],
    ),
    (
        "clipconformity/functional/density.py",
        DENSITY,
        [
            ("PENALTIES * width**5", "PENALTIES * width**4", SMOOTHING),
            ("EVIDENCE_MARGIN = 1.0", "EVIDENCE_MARGIN = 10.0"),
            ("EVIDENCE_MARGIN = 1.0", "EVIDENCE_MARGIN = 0.0", SMOOTHING),
            ("- EVIDENCE_MARGIN).max())", "- EVIDENCE_MARGIN).min())"),
            ("DIFFERENCE = np.array([-1.0, 3.0, -3.0, 1.0])", "DIFFERENCE = np.array([-1.0, 2.0, -2.0, 1.0])"),
            ("\nTOLERANCE = 1e-9", "\nTOLERANCE = 1e-8", "",
             "a fit ends within 1e-8 of the top of its log-likelihood then, which no figure shows"),
            ("LOWEST_LOG = -690.0", "LOWEST_LOG = -69.0", "", "a share of e^-69 of a divergence is below rounding"),
            ("(len(eta) - 3) * np.log(penalty)", "len(eta) * np.log(penalty)"),
            ("+ 0.5 * determinants", "- 0.5 * determinants"),
            ("+ 0.5 * determinants", "+ determinants"),
            ("(len(self.means) - 3) * np.log(self.penalty", "(len(self.means) - 2) * np.log(self.penalty"),
            ("PIVOT_SCALE = 1e-6", "PIVOT_SCALE = 1.0", DIGITS),
            ("np.diag(self.means)", "np.eye(len(self.means))"),
            ("- np.exp(x) - penalty *", "- np.exp(x) + penalty *"),
            ("likelihood - 0.5 * penalty *", "likelihood - penalty *"),
            ("np.maximum(log_q, floor)", "log_q"),
            ("np.maximum(variance, 0.25)", "variance"),
            ("/ self.cell).floor() + CELLS // 2", "/ self.cell).round() + CELLS // 2", MOMENTS),
            ("position.clamp(-1, CELLS)", "position.clamp(0, CELLS - 1)", MOMENTS),
        ],
    ),
    (
        "clipconformity/functional/divergence.py",
        DIVERGENCE,
        [
            ("(freedom - 1) / (2 * side.effective)", "freedom / (2 * side.effective)"),
            ("(freedom - 1) / (2 * side.effective)", "(freedom - 1) / side.effective"),
            ("(value - sum(readout.biases))", "value", BIAS),
            (".clamp_min(0) for value in values", " for value in values"),
            ("TAIL_FLOOR = 1e-4", "TAIL_FLOOR = 1e-3"),
            ("TAIL_MOVES = 0.05", "TAIL_MOVES = 0.5"),
            ("OUTSIDE = 0.25", "OUTSIDE = 2.5"),
            ("overflow > 0.001", "overflow > 0.01"),
            ("_std(evaluated.counts) < 1", "_std(evaluated.counts) < 0.1"),
            ("floor - math.log(1000)", "floor - math.log(10)"),
            ("max(TAIL_MOVES * value, sum(readout.biases))", "TAIL_MOVES * value"),
            ("fourth / second**2 - 3 if", "fourth / second**2 if", STANDING),
            ("math.log(TAIL_FLOOR / readout.effective[side])", "math.log(TAIL_FLOOR)"),
            ("if std < 1e-8", "if std < 1e-7"),
            ("x[first:last] * (side.effective / x.sum())", "x[first:last]"),
            ("coarse * (readout.effective[i] / coarse.sum(1, keepdim=True))", "coarse"),
            ("    inner[..., 0] += counts[..., 0]\n", ""),
            ("factor * 4 > min(stds)", "factor > 4 * min(stds)"),
            ("relative_entropy(logs[0], logs[1], _log_floor(readout, 1))",
             "relative_entropy(logs[0], logs[1], _log_floor(readout, 0))"),
        ],
    ),
    (
        "clipconformity/functional/geometry.py",
        GEOMETRY,
        [
            ("distances.var()", "distances.var(correction=0)"),
            ("(spectrum[0] / spectrum[-1]) if", "(spectrum[0] / spectrum[-2]) if"),
            ("covariance / covariance.trace()", "covariance"),
            ("variances > off.sum(1)", "variances > off.sum(1) / 2"),
            ("pairs = varied.sum() * (varied.sum() - 1)", "pairs = varied.sum() * varied.sum()"),
            ("off.sum() / variances.sum()", "off.sum() / covariance.square().sum().sqrt()"),
            ("(u * w).sum(1).mean(", "(u * w).sum(1).abs().mean("),
        ],
    ),
    (
        "clipconformity/functional/interpolation.py",
        INTERPOLATION,
        [
            ("for s in (1 - t, t))", "for s in (t, 1 - t))"),
            ("\nSMALL = 1e-3", "\nSMALL = 1e-1"),
            ("OPPOSITE = 1e-6", "OPPOSITE = 1e-4"),
            ("(23 / 45 - ratio * 44 / 105)", "(23 / 45)", "",
             "where the series is used, at squared angles below 4e-4, the term is 2e-16"),
            (" * (1 - square / 42)", ""),
            ("+ (1 - path.start - path.end) * center ", ""),
            ("(1 - t) * lengths[0] + t * lengths[1]", "lengths[0]"),
            ("torch.minimum(t, 1 - t)) * length * axis", "t) * length * axis"),
            ("axis - (axis * a).sum(-1, keepdim=True) * a", "axis"),
        ],
    ),
    (
        "clipconformity/functional/likelihood.py",
        LIKELIHOOD,
        [
            ("math.log(2 * math.pi)", "math.log(math.pi)"),
            ("spectrum.log().sum()", "spectrum.log().sum() / 2"),
            ("(1 - shrinkage) * spectrum + ", "spectrum + "),
            ("- 2 * overlap", "- overlap"),
            ("- (centered @ half).square().sum(1) +", "- 2 * (centered @ half).square().sum(1) +", INFLUENCE),
            ("+ 2 * centered @ (mean - other_mean)", "+ centered @ (mean - other_mean)", INFLUENCE),
            ("+ 2 * centered @ (mean - other_mean)", "- 2 * centered @ (mean - other_mean)", INFLUENCE),
            (".pow(-0.25)", ".pow(-0.5)", INFLUENCE),
            ("values - values.mean()", "values", INFLUENCE),
            ("(1 - 2 / dim) * square", "square", INFLUENCE),
            ("count + 1 - 2 / dim", "count", INFLUENCE),
            ("(square - trace**2 / dim)", "square", INFLUENCE),
        ],
    ),
    (
        "clipconformity/functional/linalg.py",
        GEOMETRY,
        [
            ("total / (len(values) - 1)", "total / len(values)"),
            ("scaled = values / values.detach().abs().amax(-1, keepdim=True)", "scaled = values",
             LOSSES, "norms are within 1e-15 to 1e15, whose squares are within the range of float32"),
            ("result[:, column] = values[order.to(values.device), column]", "result[:, column] = values[:, column]"),
        ],
    ),
    (
        "clipconformity/functional/ranks.py",
        f"{AREA} {RANKS}",
        [
            ("(below + through + 1).double() / 2", "through.double()"),
            ("(below + through).sum(1)", "(2 * below).sum(1)"),
            ("(dx.square().sum(-1) * dy.square().sum(-1)).sqrt()", "dx.square().sum(-1)"),
            ("levels(confidence).to(pair.device)", "levels(2 * confidence - 1).to(pair.device)"),
        ],
    ),
    (
        "clipconformity/functional/resampling.py",
        RESAMPLING,
        [
            ("MIN_DEGREES = 1 - 1e-9", "MIN_DEGREES = 2 - 1e-9"),
            ("tail = (1 - confidence) / 2", "tail = 1 - confidence"),
            ("betaincinv(hits, count - hits + 1, tail)", "betaincinv(hits, count - hits, tail)"),
            ("student_quantile((1 + confidence) / 2", "student_quantile(confidence"),
            ("float(count.sum()) ** 2 / squares", "float((count > 0).sum())"),
            ("(used - 1) / used * (values", "(values"),
            ("values = left_out[count > 0]", "values = left_out"),
            ("jackknife_error(left_out, count), effective_number(count) - 1",
             "jackknife_error(left_out, count), effective_number(count)"),
            ("known = [effective_number(count) - 1 for", "known = [effective_number(count) for"),
            ("sum(parts) ** 2 / spread", "min(known)"),
            ("part**2 / degrees for", "part / degrees for"),
            ("jackknife_error(left_out, torch.stack(counts).sum(0))",
             "sum(jackknife_error(own, count) ** 2 for own, count in zip(sides, counts)).sqrt()", CONTRAST),
            ("(sums.sum() - sums) / (count.sum() - count)", "(sums.sum() - sums) / count.sum()"),
            ("torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2]", "torch.tensor([1 - confidence, confidence]"),
            ("min(end, MAX_EXPONENT)", "end"),
            ("torch.maximum(2 * point - below, above - 2 * bias)", "2 * point - below"),
            ("above - 2 * bias", "above - bias"),
            ("torch.minimum(2 * point - above, value)", "below"),
            ("low.clamp_min(0), high", "low, high"),
        ],
    ),
    (
        "clipconformity/functional/separability.py",
        SEPARABILITY,
        [
            ("len(classes.text) - 2)).sqrt()", "len(classes.text))).sqrt()"),
            ("(len(centered) - 2)", "len(centered)"),
            ("    pooled.diagonal().fill_(1)\n", ""),
            ("(means[0] + means[1]) @ direction / 2", "(means[0] + means[1]) @ direction"),
            ("folded = torch.maximum(area, 1 - area)", "folded = area"),
            ("LABEL_ACCURACY = 0.99", "LABEL_ACCURACY = 0.95"),
            ("LABEL_ACCURACY = 0.99", "LABEL_ACCURACY = 0.999"),
            ("LEAST_SPREAD = 1e-6", "LEAST_SPREAD = 1e-5"),
            ("torch.sign(means[0] - means[1]), (means[0] + means[1]) / 2", "torch.sign(means[0] - means[1]), means[0]"),
            ("train = _Classes(*(x[at != fold] for", "train = _Classes(*(x for"),
            ("chosen = _best(train, k)", "chosen = _best(whole, k)"),
            (".abs() / _spread(classes)", ".abs()"),
        ],
    ),
    (
        "clipconformity/functional/sweep.py",
        SWEEP,
        [
            (" * math.sqrt(size / (count - size))", ""),
            ("(result - result.mean(1, keepdim=True))", "result"),
            ("logits.diagonal()).mean() / 2", "logits.diagonal()).mean()"),
            ("- 2 * logits.diagonal()", "- logits.diagonal()"),
            ("((1 - alpha) * mean).float()", "((1 - 2 * alpha) * mean).float()"),
            ("(point - above).clamp_min(floor), point - below", "(point + below).clamp_min(floor), point + above"),
            ("confidence, floor=0.0)", "confidence)"),
            ("losses - losses[0], confidence", "losses, confidence", REAL_SWEEP),
            ("(count - weight).clamp_min(1)", "(count - 1)"),
            ("share @ rows - share.sum(1, keepdim=True) * move", "share @ rows"),
            ("- 2 * along + move.square()", "- 2 * along - move.square()"),
            ("counts_of(part, part.shape[1]) @ x for part in _parts(index)]) / count",
             "counts_of(part, part.shape[1]) @ x for part in _parts(index)]) / (count - 1)"),
            ("torch.tensor([sum(c.readout.biases) for c", "torch.tensor([0.0 for c"),
            ("(drawn - drawn[0])", "drawn"),
            ("[len(part) for part in _parts(index)])", "[len(part) for part in _parts(index)][::-1])"),
            ("2 * (point - point[0]) - above, 2 * (point - point[0]) - below", "below, above"),
        ],
    ),
    (
        "clipconformity/functional/two_sample.py",
        TWO_SAMPLE,
        [
            ("signs = 2 * torch.randint(2, (resamples, len(evaluated)), generator=generator).double() - 1",
             "signs = torch.randint(2, (resamples, len(evaluated)), generator=generator).double()"),
            ("side - rows * (side.sum(0) / side.sum())", "side"),
            ("+ signs @ added", "+ signs.roll(len(sides), 0) @ added"),
            ("/ (below[inner] * (total - below[inner]))", "/ total**2"),
            ("(1 + reached) / (1 + len(draws))", "reached / len(draws)"),
            ("draws >= observed * (1 - 1e-12)", "draws > observed"),
        ],
    ),
    (
        "clipconformity/functional/validation.py",
        SCALES,
        [
            ("= 1e-15, 1e15", "= 1e-14, 1e15"),
            ("= 1e-15, 1e15", "= 1e-15, 1e16"),
            ("torch.finfo(dtype).eps * length", "10 * torch.finfo(dtype).eps * length", ROUNDING),
        ],
    ),
    (
        "clipconformity/stream/contrast.py",
        f"{CONTRAST} {OVERLAP}",
        [
            ("(mean.both - own_without) / spread.moving", "(mean.both - own_without) / spread.fixed"),
            ("(mean.evaluated - own) / spread.whole", "(mean.evaluated - own) / spread.moving"),
            ("(mean.reference - own_without) / spread.moving", "(mean.reference - own) / spread.whole"),
            ("without - theirs, mine - others)", "mine - others, without - theirs)"),
            ("\nTINY = 1e-9", "\nTINY = 1e-6"),
            ("SUSPICIOUS = 5.0", "SUSPICIOUS = 50.0"),
            ("MIN_ROWS = 50", "MIN_ROWS = 25"),
            ("MIN_ROWS = 50", "MIN_ROWS = 100"),
            ("MIN_GROUPS = 40", "MIN_GROUPS = 4"),
            ("MIN_GROUPS = 40", "MIN_GROUPS = 400"),
            ("MIN_BUCKETS = 20", "MIN_BUCKETS = 2"),
            ("MIN_KNOWN = 5", "MIN_KNOWN = 50"),
            ("RARE = 0.025", "RARE = 0.05"),
            ("2 * unseen * (1 - unseen) * float", "unseen * (1 - unseen) * float"),
            ("max(high, (1 - mixed) / max(1 - theirs, TINY)) if math.isfinite(high) else high", "high"),
            ("effective_number(self._mine[\"count\"]), 1.0)", "float((self._mine[\"count\"] > 0).sum()), 1.0)"),
            ("/ left) / (left - 1)", "/ left) / left"),
            ("/ count.sum()) / (count.sum() - 1)", "/ count.sum()) / count.sum()"),
            ("            first = first.index_add(0, bucket, weight * (without_own - with_own))\n", ""),
            ("spread.whole, spread.fixed", "spread.whole, spread.moving"),
            ("locate(with_own)), -weight", "locate(with_own)), weight"),
            ("(count * values - 1) / (count - 1)", "values"),
            ("count = count - self.reference.moments[\"count\"][bucket]", "count = count + 0 * bucket"),
        ],
    ),
    (
        "clipconformity/stream/moments.py",
        MOMENTS,
        [
            ("torch.outer(mean, mean)) / (self.total - 1)", "torch.outer(mean, mean)) / self.total"),
            ("first.square() / total) / (total - 1)", "first.square() / total) / total"),
            ("UNIT_TOLERANCE = 5e-3", "UNIT_TOLERANCE = 5e-2", NORMALIZED),
            ("UNIT_TOLERANCE = 5e-3", "UNIT_TOLERANCE = 5e-4", NORMALIZED),
            ("+ len(values) * torch.outer(center, center)", ""),
            ("length = norms * weight", "length = norms"),
            ("index_add_(0, bucket, conformity * weight)", "index_add_(0, bucket, conformity)", "",
             "a bad row is taken as zeros, whose conformity is 0"),
            ("(None if x is None else x[part].to(device)", "(None if x is None else x[: len(chunk)].to(device)"),
            ("self._add(chunk, own, ids[part], key", "self._add(chunk, own, ids[: len(chunk)], key"),
            ("own = None if ids is None or placed else names", "own = None if ids is None else names"),
            ("grouped and self.layout.between is not None", "self.layout.between is not None", CONTRAST),
            ("self.layout.between.to(units)[bucket]", "self.layout.between.to(units)[bucket - 1]", OVERLAP),
            ("first.square() / total) / (total - 1)).clamp_min(0)", "first.square() / total) / (total - 1))"),
        ],
    ),
    (
        "clipconformity/stream/null.py",
        NULL,
        [
            ("FEW_GROUPS = 50", "FEW_GROUPS = 5"),
            ("FEW_GROUPS = 50", "FEW_GROUPS = 500"),
            ("means = (sums.sum(0) - sums) / (count.sum() - count)[:, None]",
             "means = sums.sum(0).expand_as(sums) / count.sum()"),
            ("not (few and not contrast.overlap.shared_groups)", "not few"),
            ("contrast.evaluated[\"unit_sum\"].cpu() + contrast", "contrast"),
        ],
    ),
    (
        "clipconformity/stream/overlap.py",
        OVERLAP,
        [
            ("\nNEAR = 1e-5", "\nNEAR = 1e-4"),
            ("math.sqrt(2 * NEAR) + 1e-6", "NEAR"),
            ("usual + 3 * math.sqrt(2 * usual)", "usual"),
            ("usual + 3 * math.sqrt(2 * usual)", "10 * (usual + 3 * math.sqrt(2 * usual))"),
            ("theirs.copies[often == 2]", "theirs.copies[often > 2]"),
            ("min(max(found - by_chance, 0.0), rows)", "found"),
            ("min(max(found - by_chance, 0.0), rows)", "max(found - by_chance, 0.0)"),
            ("theirs.copies * (often - 1)", "theirs.copies * often"),
            ("often[second] == 1", "often[second] >= 1"),
            ("weight = weight * (pairs / weight.sum().clamp_min(1.0))", "weight = weight * 1.0"),
            ("both = without[0].index_add(0, where[1][apart], -weight[apart])",
             "both = without[0].index_add(0, where[1], -weight)", CONTRAST),
            ("    if not pairs:\n        first, second = first[:0], second[:0]\n", ""),
        ],
    ),
    (
        "clipconformity/stream/pairs.py",
        f"{CONTRAST} {OVERLAP} {MOMENTS} {ONE_GROUP}",
        [
            ("apart - (inner.sum() - inner)", "apart - inner.sum()"),
            ("left.square() - (inner_pairs.sum() - inner_pairs)", "left.square() - inner_pairs.sum()"),
            ("if not moments.grouped or", "if True or"),
            ("or int((count > 0).sum()) == 1", ""),
            ("inner, inner_pairs = (sums[0] * sums[1]).sum(1), counts[0] * counts[1]",
             "inner, inner_pairs = 0 * (sums[0] * sums[1]).sum(1), 0 * counts[0]"),
            ("rest_pairs, both)", "rest_pairs, overlap.pairs)"),
            ("rest_pairs, mine)", "rest_pairs, overlap.pairs)"),
            ("rest_pairs, theirs)", "rest_pairs, overlap.pairs)"),
            ("pairs > 0.5", "pairs > -0.5"),
            ("(len(influence) / float(moments.total)) ** 0.5", "1.0", INFLUENCE),
            ("(count.sum() - count)", "(2 * count.sum())", INFLUENCE),
        ],
    ),
    (
        "clipconformity/stream/reference.py",
        f"{REFERENCE} {CONTRAST}",
        [
            ("own_set_conformity(self.units @ self.unit_mean, self.count)",
             "own_set_conformity(self.units @ self.unit_mean, len(self.units))"),
            ("(sums.sum(0) - sums) / (count.sum() - count)[:, None]", "sums.sum(0).expand_as(sums) / count.sum()"),
            ("(self.sample.rows.double(), self.mean)", "(self.sample.rows.double())"),
        ],
    ),
    (
        "clipconformity/stream/row_sample.py",
        ROWS,
        [
            ("mix(content ^ mix(groups, 4), 5)) & NO_KEY", "content) & NO_KEY"),
            ("mix(content ^ mix(groups, 4), 5)) & NO_KEY", "mix(groups, 4)) & NO_KEY"),
            ("if total <= size:", "if True:"),
            ("index_add_(0, which, self.copies[order])", "index_add_(0, which, torch.ones_like(order))"),
            ("order = self.ids.sort(stable=True).indices", "order = torch.arange(len(self.ids))"),
        ],
    ),
    (
        "clipconformity/stream/spread.py",
        CONTRAST,
        [
            ("(whole - towards - 1) / (count.sum() - count - 1)", "(whole - towards) / (count.sum() - count)"),
            ("whole - towards.gather(1, own) - towards", "whole - towards"),
            ("count.sum() - count[own] - count)", "count.sum() - count)"),
            ("/ left) / (left - 1)", "/ left) / left"),
            ("_std_outside(x - center, inside)", "_std_outside(x, inside)", "",
             "the same up to rounding: the centre only keeps the squares small"),
        ],
    ),
    (
        "clipconformity/stream/standing.py",
        STANDING,
        [
            ("HEAVY = 1.0", "HEAVY = 10.0"),
            ("LEAST_VARIANCE = 0.1", "LEAST_VARIANCE = 0.01", NULL),
            ("LEAST_VARIANCE = 0.1", "LEAST_VARIANCE = 1.0", NULL),
            ("for score in (z, square)", "for score in (z, z)"),
            ("for score in (z, square)", "for score in (square, square)"),
            ("max(1.0, sum(effects) / 2)", "sum(effects) / 2"),
            ("square = z.square() - weight @ z.square() / total", "square = z.square()"),
            (".addcmul_(weight - 1, own, value=-1)", ""),
            (".addcmul_(weight - 1, own, value=-1)", ".addcmul_(weight, own, value=-1)"),
            (" - counts[bucket] * (reference.units @ reference.unit_mean)", ""),
            ("shift = start - (moved @ evaluated_mean)[:, None].float() / cell", "shift = start"),
            ("(part @ counts)[:, None].clamp_min(1.0)", "counts.sum()"),
            ("return scale * torch.cat(found)", "return torch.cat(found)"),
            ("if self.contrast.overlap.shared_groups:", "if False:"),
            ("sum(self.plan.biases), draws", "0.0, draws"),
            ("Side(side[0].clamp_min(0), size)", "Side(side[0], size)"),
            ("total / (design_effect(histogram) if grouped else 1.0)", "total"),
            ("len(values) / effect", "len(values)"),
            ("int((self.buckets.sum(1) > 0).sum())", "len(self.buckets)", ONE_GROUP),
        ],
    ),
    (
        "clipconformity/stream/readouts/conformity.py",
        METRICS,
        [
            ("jackknife_error(mean.evaluated, moments", "jackknife_error(mean.both, moments", ERRORS),
            ("moments.good_sample().units @ moments.unit_mean, moments.total",
             "moments.good_sample().units @ moments.unit_mean, len(moments.good_sample().keys)"),
            ("\"q05\": 0.05", "\"q05\": 0.025"),
            ("*exponential(spread.interval())", "*spread.interval()", ENDS),
            ("shift.value, *shift.interval()", "shift.value, *shift.interval(0.9)", ENDS),
        ],
    ),
    (
        "clipconformity/stream/readouts/conformity_kl.py",
        STANDING,
        [
            ("standing.interval(0.95", "standing.interval(0.9"),
            ("standing.under_one_distribution(0.95", "standing.under_one_distribution(0.9"),
            ("standing.divergences().reverse", "standing.divergences().forward"),
        ],
    ),
    (
        "clipconformity/stream/readouts/norm.py",
        METRICS,
        [
            ("first.square() / total) / (total - 1)", "first.square() / total) / total"),
            ("- moments.mean, dim=1)", "- sample.rows.double().mean(0), dim=1)"),
            ("mean_error(moments[\"norm_sum\"], moments[\"count\"])",
             "mean_error(moments[\"norm_square_sum\"], moments[\"count\"])", ERRORS),
        ],
    ),
    (
        "clipconformity/stream/readouts/ellipsoid.py",
        SHAPES,
        [
            ("spectrum[-1] + moments.mean.square().sum()", "spectrum[-1]"),
            ("moments.total > len(spectrum)", "moments.total > 0", "",
             "of no more rows than dimensions the smallest eigenvalue is rounding, which the other condition sees"),
        ],
    ),
    (
        "clipconformity/stream/readouts/frechet.py",
        INFLUENCE,
        [
            ("distance_influence(reference.sample.rows.double(), *theirs, *mine)",
             "distance_influence(reference.sample.rows.double(), *theirs, *theirs)"),
            ("distance_influence(sample.rows.double(), *mine, *theirs)",
             "distance_influence(sample.rows.double(), *theirs, *mine)"),
        ],
    ),
    (
        "clipconformity/stream/readouts/likelihood.py",
        INFLUENCE,
        [
            ("spread = spread + torch.outer(apart, apart)", "spread = spread"),
            ("out = reference.clusters % FOLDS == fold", "out = torch.arange(len(rows)) % FOLDS == fold"),
            ("second - rows[out].T @ rows[out] - count", "second - count"),
            ("torch.outer(mean, mean)) / (count - 1)", "torch.outer(mean, mean)) / count"),
            (" - shift * (z.square() - z.square().mean()) / 2", ""),
            ("(-z - shift", "(z - shift"),
            ("((sampled - sampled.mean()) / spread,", "((sampled - sampled.mean()),"),
        ],
    ),
    (
        "clipconformity/stream/readouts/modality_gap.py",
        SHAPES,
        [
            ("dim=1) / (total - count)", "dim=1) / total"),
            ("jackknife_error(left_out, count)", "jackknife_error(left_out, count) / 2"),
            ("matched_sum.to(total)", "(matched_sum.to(total) + 1)"),
        ],
    ),
    (
        "clipconformity/evaluation/results.py",
        VERDICTS,
        [
            ("EFFECT_ERRORS = 1.959964 + 0.841621", "EFFECT_ERRORS = 1.959964"),
            ("MARGIN_ERRORS = 1.959964 + 1.281552", "MARGIN_ERRORS = 1.959964 + 0.841621"),
            ("student_quantile(0.975, degrees) * error", "student_quantile(0.95, degrees) * error"),
            ("no_effect - margin <= interval.low and", "no_effect - 2 * margin <= interval.low and"),
            ("interval.low and interval.high <= no_effect + margin", "interval.low"),
            ("if interval.low > no_effect:", "if effect > no_effect:"),
            ("if interval.high < no_effect:", "if effect < no_effect:"),
            ("paired = float(estimate.error) ** 2 / (mine + theirs)", "paired = 1.0"),
            ("error**2 - paired * theirs", "error**2"),
            ("max(effect, margin - effect) / EFFECT_ERRORS", "effect / EFFECT_ERRORS"),
            ("math.ceil(count * paired * mine / left)", "math.ceil(count * paired * mine / left) * 2"),
            ("if needed > count:", "if needed > 0:"),
            ("len(str(count)) - 2", "len(str(count)) - 3"),
            ("effect - no_effect if no_effect == 0 else float(estimate.value)", "effect - no_effect"),
        ],
    ),
    (
        "clipconformity/evaluation/requirements.py",
        REQUIREMENTS,
        [
            ("low if self.comparison.startswith(\">\") else high", "figure.value"),
            ("low if self.comparison.startswith(\">\") else high", "low if self.comparison == \">=\" else high"),
            ("known = end is not None and figure.reason is None", "known = end is not None"),
            ("and self.comparison.startswith(\"<\"):", "and False:"),
            ("self.name in BOUNDED and self", "self"),
            ("\">\": operator.gt", "\">\": operator.ge"),
            ("\"<=\": operator.le", "\"<=\": operator.lt"),
        ],
    ),
    (
        "clipconformity/evaluation/comparison.py",
        COMPARISON,
        [
            ("        mine.reference - theirs.reference,\n", "        mine.reference - theirs.whole,\n"),
            ("mine.both - theirs.both, sides", "mine.evaluated - theirs.evaluated, sides"),
            ("counts = mine.counts[0], theirs.counts[0]", "counts = mine.counts[0], mine.counts[0]"),
            ("exponential(ratio.interval())", "ratio.interval()"),
        ],
    ),
]  # fmt: skip
