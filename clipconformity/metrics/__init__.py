"""The torchmetrics classes: each wraps a read-out of a stream, and is public by the ``__all__`` of its file."""

from clipconformity.metrics import alignment, collection, distribution, gaussian, geometry, mmd, neighbours, vendi
from clipconformity.metrics.alignment import *
from clipconformity.metrics.collection import *
from clipconformity.metrics.distribution import *
from clipconformity.metrics.gaussian import *
from clipconformity.metrics.geometry import *
from clipconformity.metrics.mmd import *
from clipconformity.metrics.neighbours import *
from clipconformity.metrics.vendi import *

__all__: list[str] = []
__all__ += alignment.__all__
__all__ += collection.__all__
__all__ += distribution.__all__
__all__ += gaussian.__all__
__all__ += geometry.__all__
__all__ += mmd.__all__
__all__ += neighbours.__all__
__all__ += vendi.__all__
