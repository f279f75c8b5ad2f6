"""ADC map: recomputed from the corrected volumes, never a warped one.

    ln S(b) = ln S0 − b · ADC

One point for each b-value: the mean of ln S over its directions and repeats, which is the logarithm of their
geometric mean, the trace-weighted signal. A straight line through all points by least squares, all weighted
alike. ADC in µm²/s (10⁻⁶ mm²/s).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from highdicom.sr import CodedConcept
from pydicom import Dataset

from dicom_node.companions.finished import Array, Finished
from dicom_node.derive.instance_file import put
from dicom_node.derive.instances import Images, put_pixels, put_window
from dicom_node.derive.pixels import Scale
from dicom_node.derive.places import Place, numbering
from dicom_node.derive.provenance import DIFFUSION_ANALYSIS, ReferenceSlices
from dicom_node.derive.series import b_values_of, places_of
from dicom_node.derive.series_header import SeriesLabel, series_header
from dicom_node.derive.shells import Shell, shells_of
from dicom_node.headers.scan import OWN_IMAGE_TYPE

UM2_PER_MM2 = 1e6
ONE_TO_ONE = Scale(1.0, 0.0, 16, signed=False, floor=0.0, as_source=False)  # stored values are µm²/s
WINDOW = (1500.0, 3000.0)  # centre and width, µm²/s: from restricted to free water
IMAGE_TYPE = ("DERIVED", "SECONDARY", "DIFFUSION MAP", "ADC", OWN_IMAGE_TYPE)
ADC = CodedConcept("113041", "DCM", "Apparent Diffusion Coefficient")
QUANTITY = CodedConcept("246205007", "SCT", "Quantity")
UNIT = CodedConcept("um2/s", "UCUM", "um2/s")


def adc_map(corrected: Array, shells: Sequence[Shell]) -> Array:
    """ADC (Z, Y, X) in µm²/s; 0 where a signal is not positive, so that it has no logarithm.

    corrected: (V, Z, Y, X) real-world values. shells: at least two. May be negative where noise is.
    """
    b_values = np.asarray([shell.b_value for shell in shells])
    centred = b_values - b_values.mean()
    slope = np.zeros(corrected.shape[1:])
    measured = np.ones(corrected.shape[1:], dtype=bool)
    for weight, shell in zip(centred / np.sum(centred**2), shells, strict=True):
        for index in shell.volumes:
            signal = np.asarray(corrected[index], dtype=np.float64)
            positive = signal > 0
            measured &= positive
            slope += weight / len(shell.volumes) * np.log(np.where(positive, signal, 1.0))
    return np.where(measured, -UM2_PER_MM2 * slope, 0.0).astype(np.float32)


def adc_images(finished: Finished) -> list[Dataset]:
    """The ADC map as a series on the grid of the derived series; nothing where there is only one b-value.

    Negative values are stored as 0, values above 65535 µm²/s as that: both are noise.
    """
    source, made_by, policy = finished.source, finished.made_by, finished.policy
    shells = shells_of(b_values_of(source))
    if len(shells) < 2:
        return []
    adc = adc_map(finished.corrected, shells)
    used = ", ".join(f"{shell.b_value:g}" for shell in shells)
    label = SeriesLabel(
        uid=finished.series_uid("adc"),
        number=next(finished.numbers),
        ending=f" ADC{policy.description_suffix}",
        computed=f"ADC by least squares on the logarithm of the corrected images, b {used} s/mm2",
        codes=(DIFFUSION_ANALYSIS,),
    )
    headers = finished.headers
    elements = series_header(headers.first, source.facts, made_by, policy.grid, label, 0, finished.now)
    images = Images(source, label.uid, ONE_TO_ONE, elements, ReferenceSlices.of(made_by), headers)
    lowest = source.arrangement.volumes[shells[0].volumes[0]]
    (numbers,) = numbering([lowest], finished.stack)
    made = []
    for number, place, stored in zip(numbers, _places(finished, shells), ONE_TO_ONE.stored(adc), strict=True):
        image = images.image(place, number, IMAGE_TYPE)
        put_window(image, WINDOW)
        put_pixels(image, stored, ONE_TO_ONE)
        put(image, "RealWorldValueMappingSequence", [_real_world_values()])
        made.append(image)
    return made


def _places(finished: Finished, shells: Sequence[Shell]) -> list[Place]:
    """A place for each slice of the map: the header of the lowest b-value, the sources of all."""
    volumes = finished.source.arrangement.volumes
    of_volumes = [places_of(volumes[i], finished.stack) for shell in shells for i in shell.volumes]
    return [
        replace(
            together[0],
            sources=tuple(frame for place in together for frame in place.sources),
            key=f"adc|{together[0].key}",
        )
        for together in zip(*of_volumes, strict=True)
    ]


def _real_world_values() -> Dataset:
    """Stored values as ADC (PS3.3 C.7.6.16.2.11)."""
    quantity = Dataset()
    quantity.ValueType = "CODE"
    quantity.ConceptNameCodeSequence = [QUANTITY]
    quantity.ConceptCodeSequence = [ADC]
    mapping = Dataset()
    put(mapping, "LUTExplanation", "Apparent diffusion coefficient")
    put(mapping, "LUTLabel", "ADC")
    mapping.add_new("RealWorldValueFirstValueMapped", "US", ONE_TO_ONE.range[0])
    mapping.add_new("RealWorldValueLastValueMapped", "US", ONE_TO_ONE.range[1])
    put(mapping, "RealWorldValueIntercept", 0.0)
    put(mapping, "RealWorldValueSlope", 1.0)
    put(mapping, "MeasurementUnitsCodeSequence", [UNIT])
    put(mapping, "QuantityDefinitionSequence", [quantity])
    return mapping
