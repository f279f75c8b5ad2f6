"""What one instance says about its series: who, with what, how."""

from __future__ import annotations

from dataclasses import replace

from dicom_node.headers import tags
from dicom_node.headers.elements import Header, Layer
from dicom_node.headers.frames import acquisition_time, echo_time_ms, frame_image_type
from dicom_node.headers.instance import FrameFacts
from dicom_node.headers.vendors import READERS, vendor_of
from rules.facts import PhaseAxis, SeriesFacts

PRODUCT = "dicom-node"  # what we write into ContributingEquipmentSequence and DerivationDescription
OWN_IMAGE_TYPE = "DISTCORR"  # ImageType value 5 of what we write
_DEFORMED_FOR_REGISTRATION = "125027"
_NO_AGENT = {"", "NO", "NONE"}


def read_scan(header: Header, root: Header) -> SeriesFacts:
    """The facts of a series as one of its instances tells them; counts and volumes are left to `summarise`.

    header: the instance's first frame. root: its data set, without functional groups.
    """
    manufacturer = root.text(tags.MANUFACTURER)
    vendor = vendor_of(manufacturer)
    reader = READERS[vendor]
    image_type = root.tokens(tags.IMAGE_TYPE)
    frame_type = frame_image_type(reader, header)
    image_type += tuple(token for token in frame_type if token not in image_type)
    echo_planar = reader.echo_planar(header)
    phase_encoding = reader.phase_encoding(header)
    rows, columns = header.integer(tags.ROWS) or 0, header.integer(tags.COLUMNS) or 0
    component = reader.component(header, image_type)
    echo_time = echo_time_ms(header)
    return SeriesFacts(
        series_uid=root.text(tags.SERIES_INSTANCE_UID),
        study_uid=root.text(tags.STUDY_INSTANCE_UID),
        frame_of_reference_uid=root.text(tags.FRAME_OF_REFERENCE_UID) or None,
        patient_key=_patient_key(root),
        series_number=root.integer(tags.SERIES_NUMBER),
        modality=root.text(tags.MODALITY).upper(),
        sop_class_uid=root.text(tags.SOP_CLASS_UID),
        instances=1,
        description=root.text(tags.SERIES_DESCRIPTION),
        protocol_name=root.text(tags.PROTOCOL_NAME),
        body_part=root.text(tags.BODY_PART_EXAMINED).upper(),
        sequence_name=reader.sequence_name(header),
        vendor=vendor,
        manufacturer=manufacturer,
        model=root.text(tags.MANUFACTURER_MODEL_NAME),
        software="\\".join(root.texts(tags.SOFTWARE_VERSIONS)),
        station=root.text(tags.DEVICE_SERIAL_NUMBER) or root.text(tags.STATION_NAME),
        acquired=acquisition_time(header),
        acquisition_number=root.integer(tags.ACQUISITION_NUMBER),
        patient_position=root.text(tags.PATIENT_POSITION).upper(),
        image_type=image_type,
        scanning_sequence=_scanning_sequence(header),
        sequence_variant=header.tokens(tags.SEQUENCE_VARIANT),
        scan_options=header.tokens(tags.SCAN_OPTIONS),
        acquisition_type=header.text(tags.MR_ACQUISITION_TYPE).upper(),
        echo_planar=echo_planar,
        epi_factor=reader.epi_factor(header),
        echo_times_ms=() if echo_time is None else (echo_time,),
        repetition_time_ms=header.number(tags.REPETITION_TIME),
        inversion_time_ms=_inversion_time_ms(header),
        contrast_agent=_contrast_agent(root),
        fat_suppressed=reader.fat_suppressed(header),
        angio=header.text(tags.ANGIO_FLAG).upper() == "Y"
        or header.text(tags.TIME_OF_FLIGHT_CONTRAST).upper() == "YES",
        colour=root.integer(tags.SAMPLES_PER_PIXEL) == 3,
        complex_components=(component,) if component else (),
        anisotropy_map=header.has(tags.DIFFUSION_ANISOTROPY_TYPE),
        rescale_type=header.text(tags.RESCALE_TYPE),
        gradient_nonlinearity=reader.gradient_nonlinearity(header, image_type),
        prescan_normalised=reader.prescan_normalised(header, image_type),
        own_output=own_output(root, image_type),
        rows=rows,
        columns=columns,
        phase_encoding=phase_encoding,
    )


def _patient_key(root: Header) -> str:
    """PatientID with its issuer; empty without an ID, so that two unknown patients are not one."""
    patient_id = root.text(tags.PATIENT_ID)
    return f"{patient_id}\\{root.text(tags.ISSUER_OF_PATIENT_ID)}" if patient_id else ""


def with_readout(scan: SeriesFacts, header: Header, slices: tuple[FrameFacts, ...]) -> SeriesFacts:
    """`scan` with the readout time of its EPI, which needs the matrix of one slice and not of a mosaic."""
    if not slices or not scan.echo_planar or scan.phase_encoding is None:
        return scan
    along_columns = scan.phase_encoding.axis is PhaseAxis.COLUMN
    lines = slices[0].rows if along_columns else slices[0].columns
    readout = READERS[scan.vendor].readout(header, lines)
    if readout is None:
        return scan
    return replace(scan, total_readout_s=readout.seconds, readout_estimated=readout.estimated)


def own_output(root: Header, image_type: tuple[str, ...]) -> str:
    """The evidence that this node made the image, or nothing."""
    for item in root.items(tags.CONTRIBUTING_EQUIPMENT_SEQUENCE):
        equipment = Header([Layer(item)])
        if (
            PRODUCT
            in (equipment.text(tags.MANUFACTURER) + equipment.text(tags.MANUFACTURER_MODEL_NAME)).lower()
        ):
            return "ContributingEquipmentSequence (0018,A001) names dicom-node"
    if len(image_type) > 4 and image_type[0] == "DERIVED" and image_type[4] == OWN_IMAGE_TYPE:
        return "ImageType (0008,0008) says DERIVED and DISTCORR"
    codes = [
        Header([Layer(item)]).text(tags.CODE_VALUE) for item in root.items(tags.DERIVATION_CODE_SEQUENCE)
    ]
    described = root.text(tags.DERIVATION_DESCRIPTION).lower().startswith(PRODUCT)
    if _DEFORMED_FOR_REGISTRATION in codes and described:
        return "DerivationDescription (0008,2111) names dicom-node"
    return ""


def _scanning_sequence(header: Header) -> tuple[str, ...]:
    """ScanningSequence; enhanced objects say the same in three attributes of their own."""
    classic = header.tokens(tags.SCANNING_SEQUENCE)
    if classic:
        return classic
    echo = {"SPIN": ("SE",), "GRADIENT": ("GR",), "BOTH": ("SE", "GR")}.get(
        header.text(tags.ECHO_PULSE_SEQUENCE).upper(), ()
    )
    inversion = ("IR",) if header.text(tags.INVERSION_RECOVERY).upper() == "YES" else ()
    planar = ("EP",) if header.text(tags.ECHO_PLANAR_PULSE_SEQUENCE).upper() == "YES" else ()
    return (*echo, *inversion, *planar)


def _inversion_time_ms(header: Header) -> float | None:
    """Inversion time; vendors write 0 where nothing is inverted."""
    return header.number(tags.INVERSION_TIME) or header.number(tags.INVERSION_TIMES) or None


def _contrast_agent(root: Header) -> bool:
    named = root.text(tags.CONTRAST_BOLUS_AGENT).upper()
    return named not in _NO_AGENT or bool(root.items(tags.CONTRAST_BOLUS_AGENT_SEQUENCE))
