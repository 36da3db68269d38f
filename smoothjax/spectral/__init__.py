"""Maps in the frequency domain: low-pass filters, their best cut-off, and where a map is signal.

Frequencies are radii in cycles per image: bin k of an axis of n elements has the frequency
`min(k, n - k) * longest / n`, in cycles per longest filtered axis, and a radius is the Euclidean
norm over the filtered axes. So a disc of radii is isotropic in the image, whatever its shape.
"""

from smoothjax._shown import listed as _listed
from smoothjax.spectral.cutoff import CutoffSearch as CutoffSearch
from smoothjax.spectral.cutoff import best_cutoff as best_cutoff
from smoothjax.spectral.filters import butterworth as butterworth
from smoothjax.spectral.filters import disc as disc
from smoothjax.spectral.filters import forgrad as forgrad
from smoothjax.spectral.filters import lowpass as lowpass
from smoothjax.spectral.toward import smoothgrad_toward as smoothgrad_toward
from smoothjax.spectral.wiener import SignalAndNoise as SignalAndNoise
from smoothjax.spectral.wiener import power_spectrum as power_spectrum
from smoothjax.spectral.wiener import signal_and_noise as signal_and_noise
from smoothjax.spectral.wiener import wiener as wiener

__dir__ = _listed(globals())
