"""Which reader answers for which manufacturer."""

from __future__ import annotations

from dicom_node.headers.canon import CanonReader
from dicom_node.headers.ge import GeReader
from dicom_node.headers.hitachi import HitachiReader
from dicom_node.headers.philips import PhilipsReader
from dicom_node.headers.public import PublicReader
from dicom_node.headers.siemens import SiemensReader
from dicom_node.headers.uih import UihReader
from rules.facts import Vendor

# prefixes of Manufacturer (0008,0070) in lower case
_PREFIXES = (
    ("sie", Vendor.SIEMENS),
    ("ge", Vendor.GE),
    ("phi", Vendor.PHILIPS),
    ("to", Vendor.CANON),
    ("ca", Vendor.CANON),
    ("ui", Vendor.UIH),
    ("united imaging", Vendor.UIH),
    ("shanghai united imaging", Vendor.UIH),
    ("hi", Vendor.HITACHI),
    ("fuji", Vendor.HITACHI),
)
READERS: dict[Vendor, PublicReader] = {
    Vendor.SIEMENS: SiemensReader(),
    Vendor.GE: GeReader(),
    Vendor.PHILIPS: PhilipsReader(),
    Vendor.CANON: CanonReader(),
    Vendor.UIH: UihReader(),
    Vendor.HITACHI: HitachiReader(),
    Vendor.OTHER: PublicReader(),
}


def vendor_of(manufacturer: str) -> Vendor:
    """The vendor by the beginning of Manufacturer."""
    name = manufacturer.strip().lower()
    return next((vendor for prefix, vendor in _PREFIXES if name.startswith(prefix)), Vendor.OTHER)
