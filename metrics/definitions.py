"""What each number of evaluate.py is, in the order of its table."""

from metrics.faces import EXPLODED, RINGS
from metrics.inputs import BLUR, COLOURS, CONTRAST, DRAWS, FIXED, HELD_OUT, JPEG_QUALITY, MOSAIC, MOTION, NOISE  # fmt: skip

DEFINITIONS = {
    "real_fd": "Frechet distance between SR of the faces of LR_test and the crops of HR_test; lower is better",
    "real_fd_both": "the same, against the crops of HR_test and the faces of --groups together",
    "psnr_clean": "PSNR of SR of the clean LR face x_c against y; dB, RGB, 8 bits, the mean of the images' dB",
    "psnr_degraded": f"the same for x_d = G(x_c, z), {DRAWS} draws of z an image",
    "psnr_mixed": "the same for alpha x_c + (1 - alpha) x_d, the first draw of z",
    "ssim_clean": "SSIM of SR of x_c against y; RGB, 8 bits, torchmetrics' default window",
    "ssim_degraded": f"the same for x_d, {DRAWS} draws of z an image",
    "ssim_mixed": "the same for the mix",
    "perceptual_clean": "the training loss' perceptual distance of SR of x_c to y; its scale is that of the perceptual network",
    "perceptual_degraded": f"the same for x_d, {DRAWS} draws of z an image",
    "perceptual_mixed": "the same for the mix",
    "psnr_eight": "PSNR against y, the mean over the eight degradations of each face",
    "psnr_four": f"the same over {', '.join(FIXED)}, which no network makes: comparable whatever G is",
    **{f"psnr_{kind}": f"the same for {kind} alone" for kind in FIXED},
    "psnr_held_out": f"the same over {', '.join(HELD_OUT)}, of which no training has any",
    **{f"psnr_{kind}": f"the same for {kind} alone" for kind in HELD_OUT},
    "consistency": "mean pairwise PSNR of the SR of a face's eight degradations; dB. Read it beside psnr_eight",
    "consistency_z": f"the same among the {DRAWS} draws of z alone",
    **{f"consistency_{kind}": f"the same between {kind} and each of the seven others" for kind in FIXED},
    "feature_gap": "Sinkhorn distance between E(x_c) and E of the eight degradations, divided by that between E(x_c) of "
    "different faces; lower is better",
    "saturated_real": "share of values outside [-1, 1] before clamping, SR of LR_test",
    "saturated_test": "the same, SR of x_c, the mix and the eight degradations",
    "exploded_real": f"share of images with more than {EXPLODED[0]:.0%} of values beyond {EXPLODED[1]}, SR of LR_test",
    "exploded_test": "the same, SR of every kind of input made from HR_test",
}  # fmt: skip

RING_NAMES = [f"power_{low}_{high}" for low, high in RINGS]
DEGRADATION_DEFINITIONS = {
    "psnr": f"PSNR against x_c, 16x16 px, {DRAWS} draws an image: does it still show the face?",
    "psnr_colour": "the same after each channel's mean is set to x_c's: how much of it is the colour alone",
    "fd": "Frechet distance to the real faces of LR_test, all enlarged by bicubic interpolation: does it look like them? "
    "One draw an image",
    **{name: f"share of the luminance's power at {low} to under {high} periods a face, of that at {RINGS[0][0]} to "
       f"{RINGS[-1][1]}, under a Hann window" for name, (low, high) in zip(RING_NAMES, RINGS)},
    "rows": "real: LR_test; floor: as many faces of LR_train; x_c: clean; x_d: G(x_c, z); hand_crafted: blurred, exposed, noised "
    "and compressed at random by degradations.py, without any training",
}  # fmt: skip

GROUP_DEFINITIONS = {
    "faces": "how many test faces have this label",
    "psnr_clean": "PSNR of SR of x_c against y, the mean of these faces; dB",
    "psnr_four": f"the same over {', '.join(FIXED)}",
    "consistency": f"mean pairwise PSNR of the SR of x_c, {', '.join(FIXED)}; dB. Not comparable with the eight's",
}


def describe_kinds() -> dict[str, str]:
    """How each kind of input is made."""
    return {
        "eight degradations": f"{DRAWS} draws of z; Gaussian blur, {BLUR:g} px of the HR face; Gaussian noise, {NOISE:g} of "
        f"255, and JPEG, quality {JPEG_QUALITY}, on the LR face; bilinear in place of bicubic reduction",
        "held-out kinds": f"motion: blurred along a line of {MOTION} px of the HR face; faded: contrast times {CONTRAST:g} about "
        f"the middle grey; nearest: nearest-neighbour reduction; mosaic: tiles of {MOSAIC}x{MOSAIC} LR px of one colour; "
        f"palette: {COLOURS} colours",
    }
