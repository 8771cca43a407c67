#!/usr/bin/env bash
# Measures every table of the README and of docs/ that the embedded models fill: bash benchmarks/measure.sh runs/measure
# Several hours on two cores: give it a part's name (effect, compare, wall, loop, ablations, docs) as the second argument to
# run that part only, beside another. What is there already is kept or gone on with; benchmarks/tables.py prints the tables.
set -euo pipefail
out=${1:-runs/measure}
part=${2:-all}
seed=7007 # nothing was trained with it, no setting chosen by it
mkdir -p "$out"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

wanted() { [ "$part" = all ] || [ "$part" = "$1" ] || [ "$part" = "${1%-*}" ]; }
measure() { # NAME MODULE ARGUMENTS: one JSON file, and what was printed
    local file="$out/$1.json"
    [ -e "$file" ] || python -m "benchmarks.$2" "${@:3}" --out "$file" | tee "$out/$1.txt"
}
compare() { # NAME ARGUMENTS: a run folder. A sample whose replies cannot be read counts 0, and the command says so and fails
    python -m ttopt compare --run-dir "$out/$1" --seed $seed --logging.wandb disabled "${@:2}" >"$out/$1.txt" ||
        echo "$1 has errors: see above and $out/$1.txt" >&2
}

for split in id ood; do
    if wanted "effect-$split"; then
        measure "effect-$split" effect --split $split --seed $seed --samples 512 --seeds 20
    fi
    if wanted "compare-$split"; then
        methods='[static,single,Pass@5,Pass@10,PE,VideoTPO,seed ensemble,teacher LoRA,step loop]'
        compare "compare-$split" --split $split --limit 100 --only "$methods"
        compare "compare-lora-$split" --split $split --limit 64 --only '[single,step loop + LoRA]'
    fi
done
if wanted wall; then # alone on the machine
    compare wall --split ood --limit 25 --only '[static,single,Pass@5,Pass@10,PE,VideoTPO,seed ensemble,teacher LoRA]'
fi
if wanted loop; then
    python -m benchmarks.step_loop --families '[tour,relay]' --limit 64 --seed $seed --run_dir "$out/loop" >"$out/loop.txt" ||
        echo "the loop has errors: see above and $out/loop.txt" >&2
fi
if wanted ablations; then
    compare ablations --config ablations --split ood
fi
if wanted docs; then
    measure base-id effect --split id --seed $seed --samples 256 --seeds 1 --ceiling 0 --reasoner.transformer embedded-base
    for split in dev_id dev_ood; do
        for tau in 0.05 0.07 0.1 0.22; do
            measure "tau-$tau-$split" effect --split $split --seed 91 --samples 256 --seeds 1 --ceiling 0 \
                --optimization.tau $tau
        done
    done
    measure oracle effect --families '[two,visit]' --split dev_ood --seed 91 --samples 102 --seeds 1 --ceiling 102
    measure memory bank --split ood --seed $seed --samples 64 --bank 256
    for split in id ood; do
        measure "replies-$split" replies --split $split --seed 4003 --samples 128
    done
fi
