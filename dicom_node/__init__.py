"""dicom-node: corrects the geometric distortion of diffusion-weighted MRI between scanner and PACS."""

__version__ = "0.1.0"
