"""Options of a pre-training run that takes seconds."""

TINY_RECIPE = {
    "preset": "spa3r-tiny",
    "untrained_teachers": True,
    "held_out_scenes": 2,
    "figures": 0,
    "cameras": True,
    "depth": True,
    "image_width": 56,
    "min_views": 3,
    "max_views": 5,
    "images_per_device": 10,
    "eval_views": 4,
    "report_to": "none",
    "use_cpu": True,
}
