"""FourierFT on a linear layer: W x becomes W x + scaling · D x, where D (O, I) is given by its spectrum.

Shapes: fourierft_spectrum (N,) is trained; indices (2, N) are the rows and columns of these entries in the spectrum,
which is zero elsewhere. They are drawn from a seed and not saved.

Gao et al., "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform", 2024, arXiv:2405.03003.
"""

from __future__ import annotations

import torch
from torch import nn

from peftcli.adapters.additive import AdditiveLinear
from peftcli.adapters.buffers import BufferDict
from peftcli.adapters.remembered import remembered
from peftcli.adapters.weights import adapter_dtype, weight_of
from peftcli.methods.fourierft.config import FourierFTConfig


class FourierFTLinear(AdditiveLinear):
    """nn.Linear, or the Conv1D of Transformers, with FourierFT adapters on it."""

    adapter_layer_names = ("fourierft_spectrum",)
    other_param_names = (
        "fourierft_n_frequency",
        "fourierft_scaling",
        "fourierft_random_loc_seed",
        "indices",
    )

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.fourierft_spectrum = nn.ParameterDict()
        self.indices = BufferDict()
        self.fourierft_n_frequency: dict[str, int] = {}
        self.fourierft_scaling: dict[str, float] = {}
        self.fourierft_random_loc_seed: dict[str, int] = {}

    def add(self, name: str, n_frequency: int, config: FourierFTConfig, *, autocast: bool) -> None:
        """Makes a new adapter: chooses entries, and puts zeros or random numbers in them."""
        base = self.get_base_layer()
        dtype, device = adapter_dtype(base, autocast=autocast), weight_of(base).device
        self.fourierft_n_frequency[name], self.fourierft_scaling[name] = n_frequency, config.scaling
        self.fourierft_random_loc_seed[name] = config.random_loc_seed
        chosen = random_entries(self.out_features * self.in_features, n_frequency, config.random_loc_seed)
        rows, columns = chosen // self.in_features, chosen % self.in_features
        self.indices[name] = torch.stack([rows, columns]).to(device)
        make = torch.zeros if config.init_weights else torch.randn
        self.fourierft_spectrum[name] = nn.Parameter(make(n_frequency, dtype=dtype, device=device))

    def delta(self, name: str) -> torch.Tensor:
        """The real part of what the spectrum stands for; PyTorch has no such transform in half precision."""
        values = self.fourierft_spectrum[name]
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        rows, columns = self.indices[name]
        spectrum_OI = values.new_zeros(self.out_features, self.in_features).index_put((rows, columns), values)
        delta_OI: torch.Tensor = torch.fft.ifft2(spectrum_OI).real
        return delta_OI * self.fourierft_scaling[name]

    def __repr__(self) -> str:
        return f"fourierft.{super().__repr__()}"


# A model has few shapes of layers, and each permutation takes as long as a weight is large.
@remembered(8)
def random_entries(size: int, count: int, seed: int) -> torch.Tensor:
    """The places of `count` of `size` entries: those that PEFT chooses."""
    permutation = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    # A copy, for a part would keep the memory of the whole.
    return permutation[:count].clone()
