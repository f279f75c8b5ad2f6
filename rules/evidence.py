"""What single attributes of a header prove about a series: EPI, diffusion, trace, scanner-computed map.

Each function answers one question and names the attribute that answered, in words that a technologist can
check on the console. Tokens of ImageType are compared whole: a series described as
"FAST" holds no "FA".
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from rules.facts import Directionality, SeriesFacts, Vendor


@dataclass(frozen=True, slots=True)
class Evidence:
    """An answer: True, False, or None (the header is silent), with the words and attribute behind it."""

    holds: bool | None
    because: str = ""
    attribute: str = ""


# b-values at or below this are not diffusion weighting that one could see: UIH writes 1.25 for b = 0,
# Philips 0.001 to tell b = 0 volumes apart, and IVIM protocols go down to 5 (s/mm²)
UNWEIGHTED_B = 50.0

MAPS = {
    "ADC": "an ADC map",
    "ADC_UNSPECIFIED": "an ADC map",
    "EADC": "an exponential ADC map",
    "EXP": "an exponential ADC map",
    "EXPONENTIAL": "an exponential ADC map",
    "FA": "a fractional anisotropy map",
    "RA": "a relative anisotropy map",
    "VR": "a volume ratio map",
    "COLFA": "a coloured anisotropy map",
    "FA_COLOR": "a coloured anisotropy map",
    "TENSOR": "a diffusion tensor",
    "TENSOR_B0": "the b = 0 image of a tensor fit",
    "MD": "a mean diffusivity map",
    "DIFFUSION MAP": "a diffusion map",
    "CBF": "a perfusion map",
    "CBV": "a perfusion map",
    "RCBV": "a perfusion map",
    "RBF": "a perfusion map",
    "MTT": "a perfusion map",
    "TTP": "a perfusion map",
    "T1 MAP": "a T1 map",
    "T2 MAP": "a T2 map",
    "T2_STAR MAP": "a T2* map",
    "R2 MAP": "an R2 map",
    "R2_STAR MAP": "an R2* map",
    "FAT_FRACTION": "a fat fraction map",
    "WATER_FRACTION": "a water fraction map",
    "SUB": "a subtraction",
    "TTEST": "a statistical map",
    "MPR": "a reformatted copy of other images",
    "MIP": "a projection of other images",
    "MNIP": "a projection of other images",
    "PROJECTION IMAGE": "a projection of other images",
}
_MAP_WORDS = frozenset({"adc", "eadc", "fa", "colfa", "dadc", "md", "cbf", "cbv", "mtt", "ttp"})
_NOT_EPI_WORDS = frozenset({"propeller", "blade", "multivane", "haste", "tse", "fse", "ssfse"})
# These write EP into ScanningSequence (0018,0020) for every EPI; Philips and Hitachi write only SE
_WRITES_EP = frozenset({Vendor.SIEMENS, Vendor.GE, Vendor.CANON, Vendor.UIH})
# Enhanced objects have no ScanningSequence; what stands there was put together from EchoPlanarPulseSequence
_ENHANCED = frozenset(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("4.1", "4.3"))
_EPI_SEQUENCE = re.compile(r"ep2d|ep_b|epse|epfid|epi|^\*?re_b", re.IGNORECASE)
_DIFFUSION_SEQUENCE = re.compile(r"^\*?(ep|re)_b\d+|epi_d[wt]i", re.IGNORECASE)
# glued to what stands before it: "…spair_511bCALC_BVAL"
_COMPUTED_TEXT = re.compile(r"calc_?b(val(ue)?)?(?![a-z])|synthetic[ _-]?b|\bcdwi\b", re.IGNORECASE)
_COMPUTED_TOKENS = frozenset({"CALC_BVALUE", "CALC_BVAL", "CALC_B", "COMPUTED_B"})


def words(*texts: str) -> frozenset[str]:
    """The words of free text: lower case, without accents, split at everything that is no letter or digit."""
    plain = unicodedata.normalize("NFKD", " ".join(texts)).casefold()
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return frozenset(re.split(r"[\W_]+", plain)) - {""}


def weighted(facts: SeriesFacts) -> tuple[float, ...]:
    """The b-values of the diffusion-weighted volumes, s/mm², in acquisition order."""
    return tuple(b for b in facts.b_values if b is not None and b > UNWEIGHTED_B)


def token(facts: SeriesFacts, *names: str) -> str:
    """The first of `names` that is a value of ImageType, else the empty string."""
    return next((name for name in names if name in facts.image_type), "")


def epi(facts: SeriesFacts) -> Evidence:
    """Was it acquired with echo-planar imaging? None where nothing in the header tells."""
    if "EP" in facts.scanning_sequence and facts.sop_class_uid not in _ENHANCED:
        return Evidence(True, "ScanningSequence says EP", "ScanningSequence")
    # in a gradient echo without EPI (TFE), enhanced objects count the echoes of a shot under the same name
    if facts.epi_factor is not None and facts.epi_factor > 1 and facts.echo_planar is not False:
        return Evidence(True, f"the EPI factor is {facts.epi_factor}", "EPI factor")
    if facts.echo_planar or "EP" in facts.scanning_sequence:
        return Evidence(True, "EchoPlanarPulseSequence says YES", "EchoPlanarPulseSequence")
    if _EPI_SEQUENCE.search(facts.sequence_name):
        return Evidence(True, f"SequenceName is {facts.sequence_name}", "SequenceName")
    if any("EPI_GEMS" in option for option in facts.scan_options):
        return Evidence(True, "ScanOptions says EPI", "ScanOptions")
    return _not_epi(facts)


def _not_epi(facts: SeriesFacts) -> Evidence:
    """What denies EPI; None where the header is silent."""
    if facts.epi_factor == 1:
        return Evidence(False, "the EPI factor is 1", "EPI factor")
    for word in sorted(words(facts.description, facts.protocol_name, facts.sequence_name) & _NOT_EPI_WORDS):
        return Evidence(False, f"its name says {word.upper()}", "SeriesDescription")
    if facts.scanning_sequence and facts.vendor in _WRITES_EP:
        return Evidence(False, "ScanningSequence does not say EP", "ScanningSequence")
    if facts.echo_planar is False and not facts.scanning_sequence:
        return Evidence(False, "EchoPlanarPulseSequence says NO", "EchoPlanarPulseSequence")
    return Evidence(None)


def diffusion(facts: SeriesFacts) -> Evidence:
    """Does it hold diffusion images? A b-value of 0 alone proves nothing: Philips writes it everywhere."""
    high = weighted(facts)
    if high:
        return Evidence(True, f"it has b-values up to {max(high):g}", facts.b_source or "DiffusionBValue")
    if "DIFFUSION" in facts.image_type:
        return Evidence(True, "ImageType says DIFFUSION", "ImageType")
    if _DIFFUSION_SEQUENCE.search(facts.sequence_name):
        return Evidence(True, f"SequenceName is {facts.sequence_name}", "SequenceName")
    return Evidence(False)


def trace(facts: SeriesFacts) -> Evidence:
    """Are its weighted images trace-weighted (averaged over directions)?"""
    name = token(facts, "TRACEW", "TRACE")
    if name:
        return Evidence(True, f"ImageType says {name}", "ImageType")
    kinds = {
        kind
        for b, kind in zip(facts.b_values, facts.directionalities, strict=False)
        if b is not None and b > UNWEIGHTED_B
    }
    if kinds == {Directionality.ISOTROPIC}:
        return Evidence(True, "DiffusionDirectionality says ISOTROPIC", "DiffusionDirectionality")
    return Evidence(False)


def computed(facts: SeriesFacts) -> Evidence:
    """Was it computed for a b-value that nobody acquired? Only its name tells: ImageType says TRACEW too."""
    name = token(facts, *sorted(_COMPUTED_TOKENS))
    if name:
        return Evidence(True, f"ImageType says {name}", "ImageType")
    hit = _COMPUTED_TEXT.search(facts.description)
    if hit and "ORIGINAL" not in facts.image_type:
        return Evidence(True, f"SeriesDescription says {hit.group().upper()}", "SeriesDescription")
    return Evidence(False)


def derived_map(facts: SeriesFacts) -> Evidence:
    """Is it a map or a rearrangement that the scanner made of other images?

    Asked before the b-values: an ADC map carries a b-value as well.
    """
    for name in facts.image_type:
        if name in MAPS:
            return Evidence(True, f"ImageType says {name}, so this is {MAPS[name]}", "ImageType")
    if facts.anisotropy_map:
        return Evidence(
            True, "DiffusionAnisotropyType is filled in, so this is a map", "DiffusionAnisotropyType"
        )
    if facts.rescale_type.replace(" ", "").lower().startswith(("10*-6mm2/s", "10^-6mm2/s")):
        return Evidence(True, "its values are in mm²/s, so this is an ADC map", "RescaleType")
    if "DERIVED" in facts.image_type:
        for word in sorted(words(facts.description) & _MAP_WORDS):
            return Evidence(
                True,
                f"ImageType says DERIVED and SeriesDescription says {word.upper()}, so this is a map",
                "SeriesDescription",
            )
    return Evidence(False)
