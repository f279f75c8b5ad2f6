"""dicom-node: corrects the geometric distortion of diffusion-weighted MRI between scanner and PACS."""

import os

__version__ = "0.1.0"

# OpenMP threads that wait by spinning starve each other wherever something else runs too (measured on two
# busy cores: one correction took 470 s instead of 26 s). Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
