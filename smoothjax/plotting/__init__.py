"""Pictures of attributions and of what is measured of them, drawn with matplotlib.

Each function returns a figure, which a notebook shows and `savefig` writes. Those of one panel draw
on matplotlib axes of yours (`ax=`), those of several into a figure or subfigure of yours
(`figure=`). None touches the global state of `pyplot`. Colours are told apart by the colour-blind.
What draws the result of a function of this package has that function's name.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'smoothjax.plotting needs {error.name}: pip install "smoothjax[zoo]"', name=error.name
    ) from error

from smoothjax._shown import listed as _listed
from smoothjax.plotting.curves import accuracy_drop as accuracy_drop
from smoothjax.plotting.curves import best_cutoff as best_cutoff
from smoothjax.plotting.curves import convergence as convergence
from smoothjax.plotting.curves import power_spectrum as power_spectrum
from smoothjax.plotting.images import gallery as gallery
from smoothjax.plotting.images import grid as grid
from smoothjax.plotting.images import heatmap as heatmap
from smoothjax.plotting.images import mean_and_stderr as mean_and_stderr
from smoothjax.plotting.images import overlay as overlay
from smoothjax.plotting.sequences import Html as Html
from smoothjax.plotting.sequences import signal as signal
from smoothjax.plotting.sequences import text as text
from smoothjax.plotting.sequences import text_html as text_html
from smoothjax.plotting.tables import bars as bars
from smoothjax.plotting.tables import beeswarm as beeswarm
from smoothjax.plotting.tables import estimates as estimates

__dir__ = _listed(globals())
