"""Ids of scenes in paths, in the naming of the published data sets."""

import re

# A scan; the group is its room, which has several scans: scene0011_00, scene0011_01.
SCANNET_SCAN = re.compile(r"(scene\d{4})_\d{2}")
# Ten hexadecimal digits in ScanNet++, eight decimal ones in ARKitScenes; not a part of a longer word.
SCANNETPP_OR_ARKITSCENES_SCENE = re.compile(r"(?<![0-9A-Za-z])(?:[0-9a-f]{10}|\d{8})(?![0-9A-Za-z])")
