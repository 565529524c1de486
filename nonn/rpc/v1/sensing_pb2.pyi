from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NoData(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NO_DATA_UNSPECIFIED: _ClassVar[NoData]
    NO_DATA_SILENT: _ClassVar[NoData]
    NO_DATA_GAP: _ClassVar[NoData]
    NO_DATA_RATE: _ClassVar[NoData]
    NO_DATA_INVALID: _ClassVar[NoData]
    NO_DATA_FLAT: _ClassVar[NoData]
    NO_DATA_SATURATED: _ClassVar[NoData]
    NO_DATA_RANGE: _ClassVar[NoData]
    NO_DATA_CLOCK: _ClassVar[NoData]
    NO_DATA_FROZEN: _ClassVar[NoData]
    NO_DATA_OLD: _ClassVar[NoData]
NO_DATA_UNSPECIFIED: NoData
NO_DATA_SILENT: NoData
NO_DATA_GAP: NoData
NO_DATA_RATE: NoData
NO_DATA_INVALID: NoData
NO_DATA_FLAT: NoData
NO_DATA_SATURATED: NoData
NO_DATA_RANGE: NoData
NO_DATA_CLOCK: NoData
NO_DATA_FROZEN: NoData
NO_DATA_OLD: NoData

class Publication(_message.Message):
    __slots__ = ("opening", "window", "echo")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    opening: Opening
    window: WindowFeatures
    echo: Echo
    def __init__(self, opening: _Optional[_Union[Opening, _Mapping]] = ..., window: _Optional[_Union[WindowFeatures, _Mapping]] = ..., echo: _Optional[_Union[Echo, _Mapping]] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("lease", "speed", "raw")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    SPEED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    lease: str
    speed: float
    raw: bool
    def __init__(self, lease: _Optional[str] = ..., speed: _Optional[float] = ..., raw: _Optional[bool] = ...) -> None: ...

class WindowFeatures(_message.Message):
    __slots__ = ("end_us", "features", "no_data", "crc32", "battery", "raw")
    END_US_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    NO_DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    BATTERY_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    end_us: int
    features: bytes
    no_data: NoData
    crc32: int
    battery: int
    raw: bytes
    def __init__(self, end_us: _Optional[int] = ..., features: _Optional[bytes] = ..., no_data: _Optional[_Union[NoData, str]] = ..., crc32: _Optional[int] = ..., battery: _Optional[int] = ..., raw: _Optional[bytes] = ...) -> None: ...

class Echo(_message.Message):
    __slots__ = ("number", "received_us", "sent_us", "battery")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_US_FIELD_NUMBER: _ClassVar[int]
    SENT_US_FIELD_NUMBER: _ClassVar[int]
    BATTERY_FIELD_NUMBER: _ClassVar[int]
    number: int
    received_us: int
    sent_us: int
    battery: int
    def __init__(self, number: _Optional[int] = ..., received_us: _Optional[int] = ..., sent_us: _Optional[int] = ..., battery: _Optional[int] = ...) -> None: ...

class Direction(_message.Message):
    __slots__ = ("probe", "grid", "duty")
    PROBE_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    DUTY_FIELD_NUMBER: _ClassVar[int]
    probe: Probe
    grid: Grid
    duty: Duty
    def __init__(self, probe: _Optional[_Union[Probe, _Mapping]] = ..., grid: _Optional[_Union[Grid, _Mapping]] = ..., duty: _Optional[_Union[Duty, _Mapping]] = ...) -> None: ...

class Duty(_message.Message):
    __slots__ = ("rest",)
    REST_FIELD_NUMBER: _ClassVar[int]
    rest: bool
    def __init__(self, rest: _Optional[bool] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Grid(_message.Message):
    __slots__ = ("end_us", "implied")
    END_US_FIELD_NUMBER: _ClassVar[int]
    IMPLIED_FIELD_NUMBER: _ClassVar[int]
    end_us: int
    implied: bool
    def __init__(self, end_us: _Optional[int] = ..., implied: _Optional[bool] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WindowAnswer(_message.Message):
    __slots__ = ("end_us", "delay_us", "class_number", "label", "confidence", "mask", "expected_accuracy", "accuracy_low", "accuracy_high", "missing", "bytes", "raw_bytes", "bundle", "skipped", "smoothed")
    class MissingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    END_US_FIELD_NUMBER: _ClassVar[int]
    DELAY_US_FIELD_NUMBER: _ClassVar[int]
    CLASS_NUMBER_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_LOW_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_HIGH_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    SMOOTHED_FIELD_NUMBER: _ClassVar[int]
    end_us: int
    delay_us: int
    class_number: int
    label: str
    confidence: float
    mask: int
    expected_accuracy: float
    accuracy_low: float
    accuracy_high: float
    missing: _containers.ScalarMap[str, str]
    bytes: int
    raw_bytes: int
    bundle: str
    skipped: int
    smoothed: Smoothed
    def __init__(self, end_us: _Optional[int] = ..., delay_us: _Optional[int] = ..., class_number: _Optional[int] = ..., label: _Optional[str] = ..., confidence: _Optional[float] = ..., mask: _Optional[int] = ..., expected_accuracy: _Optional[float] = ..., accuracy_low: _Optional[float] = ..., accuracy_high: _Optional[float] = ..., missing: _Optional[_Mapping[str, str]] = ..., bytes: _Optional[int] = ..., raw_bytes: _Optional[int] = ..., bundle: _Optional[str] = ..., skipped: _Optional[int] = ..., smoothed: _Optional[_Union[Smoothed, _Mapping]] = ...) -> None: ...

class Smoothed(_message.Message):
    __slots__ = ("class_number", "label", "confidence", "expected_accuracy", "accuracy_low", "accuracy_high")
    CLASS_NUMBER_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_LOW_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_HIGH_FIELD_NUMBER: _ClassVar[int]
    class_number: int
    label: str
    confidence: float
    expected_accuracy: float
    accuracy_low: float
    accuracy_high: float
    def __init__(self, class_number: _Optional[int] = ..., label: _Optional[str] = ..., confidence: _Optional[float] = ..., expected_accuracy: _Optional[float] = ..., accuracy_low: _Optional[float] = ..., accuracy_high: _Optional[float] = ...) -> None: ...
