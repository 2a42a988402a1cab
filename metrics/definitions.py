"""What each number of evaluate.py is, in the order of its tables."""

from metrics.faces import EXPLODED, RINGS
from metrics.identity import DEGRADED_FACES, FACES, KINDS
from metrics.inputs import BLUR, COLOURS, CONTRAST, DRAWS, FIXED, HELD_OUT, JPEG_QUALITY, MOSAIC, MOTION, NOISE

FIXED_NAME = "_".join(FIXED)
FIXED_TITLE = ", ".join(FIXED).replace("jpeg", "JPEG")
HEADINGS = {f"psnr_{FIXED_NAME}": f"psnr {FIXED_TITLE}", f"consistency_{FIXED_NAME}": f"consistency {FIXED_TITLE}"}
MEASURES = {
    "psnr": "PSNR against y of the SR of {}; dB, RGB, 8 bits, the mean of the images' dB",
    "ssim": "SSIM against y of the SR of {}; RGB, 8 bits, torchmetrics' default window",
    "perceptual": "the training loss' perceptual distance from y to the SR of {}; its scale is that of the perceptual network",
}
FIDELITY = {
    "clean": "the clean LR face x_c",
    "degraded": f"x_d = G(x_c, z), {DRAWS} draws of z an image",
    "mixed": "alpha x_c + (1 - alpha) x_d, the first draw of z",
}
PSNR = {
    "eight": "the eight degradations of each face",
    FIXED_NAME: f"{FIXED_TITLE}, which no network makes: comparable whatever G is",
    **{kind: f"{kind} alone" for kind in FIXED},
    "held_out": f"{', '.join(HELD_OUT)}, of which no training has any",
    **{kind: f"{kind} alone" for kind in HELD_OUT},
}
CONSISTENCY = "mean pairwise PSNR of the SR of a face's {}; dB. Blur buys it: read it beside perceptual"

DEFINITIONS = {
    "real_fd": "Frechet distance between SR of the faces of LR_test and the HR faces of {reference}; lower is better",
    **{f"{name}_{kind}": text.format(FIDELITY[kind]) for name, text in MEASURES.items() for kind in FIDELITY},
    **{f"psnr_{name}": f"PSNR against y of the SR of {text}; dB" for name, text in PSNR.items()},
    "consistency": CONSISTENCY.format("eight degradations"),
    "consistency_z": CONSISTENCY.format(f"{DRAWS} draws of z"),
    f"consistency_{FIXED_NAME}": CONSISTENCY.format(FIXED_TITLE),
    **{f"consistency_{kind}": f"mean PSNR between the SR of {kind} and that of each of the seven others; dB" for kind in FIXED},
    "consistency_held_out": CONSISTENCY.format(", ".join(HELD_OUT)),
    "feature_gap": "Sinkhorn distance between E(x_c) and E of the eight degradations, divided by that between E(x_c) of "
    "different faces; lower is better",
    "saturated_real": "share of values outside [-1, 1] before clamping, SR of LR_test",
    "saturated_test": "the same, SR of x_c, the mix and the eight degradations",
    "exploded_real": f"share of images with more than {EXPLODED[0]:.0%} of values beyond {EXPLODED[1]}, SR of LR_test",
    "exploded_test": "the same, SR of every kind of input made from HR_test",
}  # fmt: skip

IDENTITY_DEFINITIONS = {
    "identity_own": f"mean distance between dlib's face descriptors of SR of x_c and of y, at most {FACES} faces as they are, "
    "at 150 px. It shows whether SR still looks like the person; it is no means to identify people",
    "identity_others": "the same to the y of all the other faces, of which few show the same person",
    "identity_nearer": "share of these others that are farther away than the own y; 0.5 is chance",
    "recognised": f"share of faces whose own y is the nearest of all, SR of x_c, at most {FACES} faces",
    **{f"recognised_{kind}": f"the same for {kind}, at most {DEGRADED_FACES} faces" for kind in KINDS if kind != "clean"},
    "recognised_degraded": f"the mean over {', '.join(KINDS)}: recognised under degradation, at most {DEGRADED_FACES} faces",
}

RING_NAMES = [f"power_{low}_{high}" for low, high in RINGS]
DEGRADATION_DEFINITIONS = {
    "psnr": f"PSNR against x_c, 16x16 px, {DRAWS} draws an image: does it still show the face?",
    "psnr_colour": "the same after each channel's mean is set to x_c's: how much of it is the colour alone",
    "fd": "Frechet distance to the real faces of LR_test, all enlarged by bicubic interpolation: does it look like them? "
    "One draw an image",
    **{name: f"share of the luminance's power at {low} to under {high} periods a face, of that at {RINGS[0][0]} to "
       f"{RINGS[-1][1]}, under a Hann window" for name, (low, high) in zip(RING_NAMES, RINGS)},
    "rows": "real: LR_test; floor: as many faces of LR_train; x_c: clean; x_d: G(x_c, z); hand_crafted_S: blurred, exposed, "
    "noised and compressed at random by Datasets/degradations.py at strength S, without any training",
}  # fmt: skip

GROUP_DEFINITIONS = {
    "faces": "how many faces have this label",
    "psnr_clean": "PSNR against y of the SR of x_c, the mean of these faces; dB",
    f"psnr_{FIXED_NAME}": f"the same over {FIXED_TITLE}",
    "consistency": f"mean pairwise PSNR of the SR of x_c, {FIXED_TITLE}; dB. Not comparable with the eight's",
}

KIND_DEFINITIONS = {
    "eight degradations": f"{DRAWS} draws of z; Gaussian blur, {BLUR:g} px of the HR face; Gaussian noise, {NOISE:g} of 255, "
    f"and JPEG, quality {JPEG_QUALITY}, on the LR face; bilinear in place of bicubic reduction",
    "held-out kinds": f"motion: blurred along a line of {MOTION} px of the HR face; faded: contrast times {CONTRAST:g} about "
    f"the middle grey; nearest: nearest-neighbour reduction; mosaic: tiles of {MOSAIC}x{MOSAIC} LR px of one colour; palette: "
    f"{COLOURS} colours",
}

ORDER = list({**DEFINITIONS, **IDENTITY_DEFINITIONS, **DEGRADATION_DEFINITIONS})  # of all tables but the groups'
