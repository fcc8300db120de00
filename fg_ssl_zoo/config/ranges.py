"""Number ranges for annotations of recipes and of options of methods and protocols."""

from typing import Annotated

from annotated_types import Ge, Gt, Le

Count = Annotated[int, Ge(1)]
"""1, 2, 3, ..."""

Positive = Annotated[float, Gt(0)]
"""Above 0."""

Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
"""0 to 2^32 - 1, as in numpy."""

Share = Annotated[float, Ge(0), Le(1)]
"""From 0 to 1, both included."""

Weight = Annotated[float, Ge(0)]
"""0 or above; 0 switches a term off."""
