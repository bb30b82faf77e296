"""A plugin of pytest for `.ci/versions --oldest`: the tests' own pickles are read by a torch of any age."""

from clipconformity.data import untrusted

untrusted.MIN_TORCH = (2, 0)
