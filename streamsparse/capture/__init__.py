"""Capture: a model over calibration images, its layers' inputs and outputs into a run."""

from streamsparse.capture.behind import sum_behind
from streamsparse.capture.images import Images, calibration_images, captured_images
from streamsparse.capture.manifest import Subject, describe
from streamsparse.capture.plan import CaptureSettings, plan_stream
from streamsparse.capture.responses import Responses
from streamsparse.capture.stage import CaptureReport, capture, capture_stream
from streamsparse.capture.taps import Taps

__all__ = [
    "CaptureReport",
    "CaptureSettings",
    "Images",
    "Responses",
    "Subject",
    "Taps",
    "calibration_images",
    "capture",
    "capture_stream",
    "captured_images",
    "describe",
    "plan_stream",
    "sum_behind",
]
