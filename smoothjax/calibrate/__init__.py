"""Measured, not guessed: the weight noise that a network bears, the chunk that a device likes."""

from smoothjax._shown import listed as _listed
from smoothjax.calibrate.chunk_size import ChunkCost as ChunkCost
from smoothjax.calibrate.chunk_size import ChunkTuning as ChunkTuning
from smoothjax.calibrate.chunk_size import tune_chunk_size as tune_chunk_size
from smoothjax.calibrate.weight_noise import SigmaEstimate as SigmaEstimate
from smoothjax.calibrate.weight_noise import accuracy_drop as accuracy_drop
from smoothjax.calibrate.weight_noise import sigma_for_accuracy_drop as sigma_for_accuracy_drop

__dir__ = _listed(globals())
