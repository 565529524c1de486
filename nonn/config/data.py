"""Tables of the experiment file about data: what is read, and what the sensors of nodes measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from nonn.errors import ConfigError
from nonn.sensing import SensingSpec
from nonn.toml.constraints import Choice, Count, NotNegative, Positive, Range, Rules, Whole

__all__ = ["DataConfig", "SensingConfig"]

Inside = Annotated[float, Range(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data, their splits and the augmentation of training inputs."""

    reader: Annotated[str, Choice("nonn.data:READERS"), "format of the data"] = "digits"
    path: Annotated[str, "file or folder; digits needs none"] = ""
    held_out: Annotated[Inside, "share of train held out for selection: statistics of filters, regularisation"] = 0.1
    held_out_by: Annotated[
        Literal["class", "group"], "the held-out split is that share of each class, or of whole groups"
    ] = "class"
    imbalance: Annotated[
        float,
        Range(ge=1),
        "skewed training data: the first class has this many times the samples of the last one, the others between "
        "them geometrically; 1: as they are. The test split stays as it is",
    ] = 1.0
    cameras: Annotated[
        Whole,
        "made data: this many cameras look at each picture, each at its own box, with its own occlusions and noise; "
        "their channels follow each other, for devices.view = 'split'; 0: the pictures as they are",
    ] = 0
    test: Annotated[Inside, "share of the test split, for readers whose files have none"] = 0.2
    size: Annotated[Count, "imagefolder: images become [3, size, size]"] = 32
    inputs: Annotated[str, "npz: name of the array of inputs [n, channels, time]"] = "windows"
    labels: Annotated[str, "npz: name of the array of labels [n]; parquet, csv: column"] = "labels"
    scale: Annotated[str, "npz: name of an array [channels] that inputs are multiplied by"] = ""
    columns: Annotated[tuple[str, ...], "csv: columns of the channels, in their order"] = ()
    rate_hz: Annotated[Positive, "csv: samples per second of the windows; files are resampled to it"] = 25.0
    window_s: Annotated[Positive, "csv: duration of a window in seconds"] = 5.0
    hop_s: Annotated[NotNegative, "csv: seconds between the ends of two windows; 0: the duration of one"] = 0.0
    group: Annotated[
        str,
        "npz: name of the array [n], csv: column, or 'file', to split by: no group is on both sides",
    ] = ""
    test_groups: Annotated[
        tuple[int, ...], "npz, csv: groups that are the test split; of text or files, their numbers in order"
    ] = ()
    crop: Annotated[Whole, "augmentation: shift by up to this many pixels or time steps"] = 0
    flip: Annotated[bool, "augmentation: mirror left-right at random"] = False
    noise: Annotated[NotNegative, "augmentation: Gaussian noise, in standard deviations of the data"] = 0.2
    rotate: Annotated[
        NotNegative, "augmentation of windows: rotate each body-worn unit by this many degrees (standard deviation)"
    ] = 0.0
    heading: Annotated[
        float,
        Range(ge=0, le=180),
        "augmentation of windows: turn the magnetometers of all units about the vertical by up to this many degrees, "
        "as for a person who faces another way",
    ] = 0.0
    unit: Annotated[
        int,
        Range(ge=3, multiple_of=3, why="x, y, z of each sensor"),
        "rotate, heading: channels of one rigid unit, x y z of each of its sensors",
    ] = 9
    accelerometer: Annotated[Whole, "heading: number of this sensor in a unit, from 0"] = 0
    magnetometer: Annotated[Whole, "heading: number of this sensor in a unit, from 0"] = 2
    cutout: Annotated[Whole, "augmentation of images: side of a random square set to the mean"] = 0

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield (
            "held_out_by",
            self.held_out_by == "class" or self.group,
            "data.group must name the array of groups, such as persons",
        )
        for key in ("accelerometer", "magnetometer"):
            sensors = self.unit // 3
            yield key, not self.heading or getattr(self, key) < sensors, f"a unit has sensors 0 to {sensors - 1}"


@dataclass(frozen=True, kw_only=True)
class SensingConfig:
    """What the sensors of nodes measure (`nonn-device join --source`); written into the bundle."""

    rate_hz: Annotated[
        NotNegative, "samples per second of each channel, or pictures per second; 0: nodes of this bundle do not sense"
    ] = 0.0
    hop_s: Annotated[NotNegative, "seconds between the ends of two windows; 0: the duration of one window"] = 0.0
    tolerance_s: Annotated[
        NotNegative,
        "pictures: one may be this many seconds from its instant; 0: three quarters of the time between two pictures, "
        "at least a tenth and at most half of the hop",
    ] = 0.0
    channels: Annotated[
        tuple[str, ...],
        "names of the channels: all of them, or those of one unit, which are the same for every unit; of a camera one "
        "(grey) or three (red, green, blue)",
    ] = ()
    units: Annotated[tuple[str, ...], "unit of each of these channels, such as m/s2, g, rad/s, deg/s, uT"] = ()
    scale: Annotated[tuple[float, ...], "factor from that unit to the input of the students, of each channel"] = ()
    smoothing: Annotated[
        Literal["none", "exponential", "hmm", "hmm-stay"],
        "smoothing of the streamed answers over time: mean with exponential weights; forward filter of a hidden Markov "
        "model whose transitions are learned from the order of training labels; hmm-stay learns only how long each "
        "class lasts, for recordings whose order of classes was arranged",
    ] = "none"
    smooth_s: Annotated[Positive, "exponential: time constant of the weights in seconds"] = 10.0

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield "smoothing", self.smoothing == "none" or self.rate_hz, "is for nodes that sense: set sensing.rate_hz"
        yield "channels", self.channels or not self.rate_hz, "name them: a node finds its columns or sensors by name"
        for key in ("units", "scale"):
            given = getattr(self, key)
            yield key, len(given) in (0, len(self.channels)), f"give one for each of the {len(self.channels)} channels"

    def spec(self, shape: Sequence[int]) -> SensingSpec:
        """What nodes measure for inputs of a shape, [C, T] or [C, H, W], without the limits of training.

        Raises:
            ConfigError: an option does not fit the inputs, or the names do not fit their channels.
        """
        num_channels, frame = shape[0], tuple(shape[1:]) if len(shape) == 3 else ()
        samples = 1 if frame else shape[1]
        hop_s = self.hop_s or samples / self.rate_hz
        for key in ("units", "scale") if frame else ("tolerance_s",):
            if getattr(self, key):
                raise ConfigError(f"sensing.{key}: is for {'windows' if frame else 'pictures'}; leave it out")
        times, rest = divmod(num_channels, len(self.channels))
        if rest:
            raise ConfigError(
                f"sensing.channels: {len(self.channels)} names for inputs of {num_channels} channels; give all of "
                "them, or those of one unit"
            )
        return SensingSpec(
            rate_hz=self.rate_hz,
            samples=samples,
            hop_s=hop_s,
            channels=self.channels * times,
            units=(self.units or ("",) * len(self.channels)) * times,
            scale=(self.scale or (1.0,) * len(self.channels)) * times,
            frame=frame,
            tolerance_s=(self.tolerance_s or min(hop_s / 2, max(hop_s / 10, 0.75 / self.rate_hz))) if frame else 0.0,
        )
