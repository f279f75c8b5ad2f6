"""What the air in and around a body does to the field: shapes for the part of a shift that is not smooth.

Air is about 9.4 ppm less diamagnetic than tissue, and its field is that of dipoles (Salomir 2003; Marques and
Bowtell 2005): steep beside the sinuses and the ear canals, where a bending energy would flatten it. The
reference shows where the air is; how strongly the image moves for it (field strength, readout, polarity) and
what the shim has taken away is not known, so that every shape gets a free coefficient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from correction import preprocess
from correction.grid import Frame, Grid, Triple, resample, sample
from correction.methods import Clinical
from correction.spline import Lattice
from correction.volume import Volume

MAIN_FIELD_LPS = (0.0, 0.0, 1.0)  # of a patient lying in a cylindrical magnet: along the body
AIR_LESS_TISSUE_PPM = 9.4


@dataclass(frozen=True, slots=True)
class AirFields:
    """Fields of the body and of the air inside it, in ppm of the main field.

    fields: (K, A, B, P) on `grid`: the body in air, all its cavities together, then the cavities piece by
    piece, with soft borders, so that what is taken for air and is none can be left out.
    """

    grid: Grid
    fields: Tensor

    def on(self, lattice: Lattice) -> Tensor:
        """Spline coefficients (K, nA, nB, nP) on a lattice: the fields' values at its control points."""
        positions = lattice.control_positions().to(self.fields.device)
        axes = zip(positions, self.grid.first_mm, self.grid.spacing_mm, strict=True)
        index = torch.stack([(p - first) / step for p, first, step in axes]).float()
        return sample(self.fields, index)


def air_fields(frame: Frame, b0: Volume, reference: Volume, settings: Clinical) -> AirFields:
    """The fields of the air that `reference` shows, on a grid that reaches beyond b0's field of view.

    What lies outside the reference goes on as its edge does. Air is dark in the reference and, along phase
    encode, near something dark in the distorted b = 0: fluid in a FLAIR or T1 is not.
    """
    full = frame.grid()
    margin = settings.air_margin_mm
    low = (full.first_mm[0] - margin, full.first_mm[1] - margin, full.first_mm[2] - margin)
    high = (full.last_mm(0) + margin, full.last_mm(1) + margin, full.last_mm(2) + margin)
    longest = max(h - lo for lo, h in zip(low, high, strict=True))
    voxel = max(settings.air_voxel_mm, longest / 96)
    grid = Grid.between(low, high, (voxel, voxel, voxel))
    image, _ = resample(reference, frame, grid)
    seen, _ = resample(b0, frame, grid)
    body = preprocess.head_mask(image, grid.spacing_mm, settings.mask_threshold, settings.mask_closing_mm)
    air = _darkness(image, grid, settings) * body * _near_dark(seen, grid, settings)
    air = _opened(air)
    direction = frame.directions.T @ np.asarray(MAIN_FIELD_LPS)
    main_field = (float(direction[0]), float(direction[1]), float(direction[2]))
    sources = [-body.float(), air, *_pieces(air, grid, settings)]
    fields = [AIR_LESS_TISSUE_PPM * dipole_field(source, grid.spacing_mm, main_field) for source in sources]
    return AirFields(grid, torch.stack(fields))


def _darkness(image: Tensor, grid: Grid, settings: Clinical) -> Tensor:
    """Share of air in each voxel, 0 to 1, from its signal as a share of bright tissue's."""
    level = preprocess.bright(image, grid.spacing_mm).clamp(min=1e-12)
    dark, light = settings.air_signal
    return ((light - image / level) / (light - dark)).clamp(0.0, 1.0)


def _near_dark(image: Tensor, grid: Grid, settings: Clinical) -> Tensor:
    """1 where the image is dark within a plausible shift along phase encode."""
    dark = (image < settings.air_b0_signal * preprocess.bright(image, grid.spacing_mm)).float()
    reach = round(settings.air_shift_mm / grid.spacing_mm[2])
    near: Tensor = functional.max_pool3d(dark[None], (1, 1, 2 * reach + 1), 1, (0, 0, reach))[0]
    return near


def _opened(air: Tensor) -> Tensor:
    """Without what is thinner than two voxels: cortical bone is as dark as air."""
    opened = ndimage.grey_opening(air.cpu().numpy(), size=(2, 2, 2))
    return torch.from_numpy(opened).to(air.device)


def _pieces(air: Tensor, grid: Grid, settings: Clinical) -> Iterator[Tensor]:
    """The largest pieces of the air under overlapping hats that add up to one."""
    hats = [_hats(grid, axis, settings.air_piece_mm, air.device) for axis in range(3)]
    volumes = torch.einsum("abp,ia,jb,kp->ijk", air, *hats) * float(np.prod(grid.spacing_mm)) / 1000
    order = torch.argsort(volumes.flatten(), descending=True, stable=True)[: settings.air_pieces]
    for flat in order.tolist():
        i, j, k = np.unravel_index(flat, volumes.shape)
        if float(volumes[i, j, k]) < settings.air_least_ml:
            return
        yield air * hats[0][i][:, None, None] * hats[1][j][None, :, None] * hats[2][k][None, None, :]


def _hats(grid: Grid, axis: int, wanted_mm: float, device: torch.device) -> Tensor:
    """(n, N) triangles along one axis that add up to one."""
    positions = grid.coordinates(axis, device).float()
    count = max(2, round(float(positions[-1] - positions[0]) / wanted_mm) + 1)
    centres = torch.linspace(float(positions[0]), float(positions[-1]), count, device=device)
    step = centres[1] - centres[0]
    return torch.relu(1.0 - (positions[None] - centres[:, None]).abs() / step)


def dipole_field(susceptibility: Tensor, spacing_mm: Triple, direction: Triple) -> Tensor:
    """Relative field ΔB/B0 of a susceptibility map, the sphere of Lorentz taken out.

    susceptibility: (..., A, B, P), relative to what surrounds the box (zero beyond it), any unit.
    direction: unit vector of the main field along the grid's axes. Returns the same shape and unit.
    """
    shape = susceptibility.shape[-3:]
    padded = [_quick(2 * n) for n in shape]
    device = susceptibility.device
    axes = [torch.fft.fftfreq(n, s, device=device) for n, s in zip(padded[:2], spacing_mm[:2], strict=True)]
    axes.append(torch.fft.rfftfreq(padded[2], spacing_mm[2], device=device))
    k = torch.meshgrid(*axes, indexing="ij")
    along = sum(d * component for d, component in zip(direction, k, strict=True))
    square = k[0] ** 2 + k[1] ** 2 + k[2] ** 2
    kernel = torch.where(square > 0, 1.0 / 3.0 - along**2 / square.clamp(min=1e-20), torch.zeros_like(square))
    spectrum = torch.fft.rfftn(susceptibility, s=padded, dim=(-3, -2, -1)) * kernel
    field: Tensor = torch.fft.irfftn(spectrum, s=padded, dim=(-3, -2, -1))
    return field[..., : shape[0], : shape[1], : shape[2]]


def _quick(size: int) -> int:
    """The next size whose only prime factors are 2, 3 and 5."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1
