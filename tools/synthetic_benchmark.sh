#!/bin/sh
# The synthetic benchmark of docs/star.md: every reading of STAR, one command, two to three hours on two cores.
#
#   sh tools/synthetic_benchmark.sh logs/benchmark
#
# The other methods: fastreid-star ablate --table 1 --on Synthetic/benchmark
#
# An interrupted call continues where it was. The tables are table.md and runs.csv in the folder.
set -eu
output=${1:?give the folder of the runs}
shift
B=Synthetic/benchmark
SAD="CrossEntropyLoss,FrameCrossEntropyLoss,TripletLoss,StyleAttackLoss,StyleDefenseLoss"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python -m fastreid_star ablate --jobs 2 --output "$output" --warm-start $B/warm_start.yml \
    --configs $B/SAD.yml $B/STAR.yml $B/STAR_frame.yml $B/STAR_sequence.yml $B/STAR_release.yml $B/STAR_first.yml \
    --seeds 0 1 2 --data-seeds 0 1 --against SAD \
    --vary STAR guide-sigmoid MODEL.STAR.GUIDE sigmoid \
    --vary STAR others DATASETS.SKELETONS_TRAIN other \
    --vary STAR bones-release MODEL.STAR.BONES release \
    --vary STAR graph-release MODEL.STAR.GRAPH release \
    --vary STAR no-KL MODEL.LOSSES.NAME "$SAD,AbsentSkeletonLoss" \
    --vary STAR geometry-image MODEL.STAR.GEOMETRY image \
    --vary STAR blank INPUT.BLANK True \
    --vary STAR_release guide-parts MODEL.STAR.GUIDE parts MODEL.LOSSES.NAME "$SAD" \
    --vary STAR_release bones-standardized MODEL.STAR.BONES standardized \
    --vary STAR corrector-release MODEL.STAR.CORRECTOR release \
    --vary STAR own-geometry INPUT.CLIP.SHARED_GEOMETRY False \
    --vary STAR erasing INPUT.REA.ENABLED True \
    --vary STAR one-exponent MODEL.STAR.EXPONENTS "[3.0]" \
    --vary STAR_release corrector-paper MODEL.STAR.CORRECTOR paper \
    --vary STAR_release graph-standardized MODEL.STAR.GRAPH standardized \
    --vary STAR_release shared-geometry INPUT.CLIP.SHARED_GEOMETRY True \
    --retest STAR swapped DATASETS.SKELETONS_TEST other \
    --retest STAR missing DATASETS.SKELETONS_TEST none "$@"
