#!/usr/bin/env bash
# A run on several nodes under Slurm: `sbatch tools/mpi/slurm.sh my.yaml [KEY=VALUE ...]`. Adapt the lines with #SBATCH. A job that
# ends at its time limit, or with a node, continues with the same command, also with other numbers of nodes and tasks.
#SBATCH --job-name=hermesflow
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --output=hermesflow-%j.log
set -euo pipefail

config=${1:?a run configuration is missing: sbatch tools/mpi/slurm.sh my.yaml}
shift
program=${HERMESFLOW:-hermesflow} # built with: cargo build --release --features mpi (on GPUs: --features mpi,cuda)

# Whatever the tasks would fetch is fetched once, where there is a network.
# "$program" fetch showlab/show-o showlab/magvitv2 microsoft/phi-1_5

# pmix or pmi2: as the MPI library was built (`srun --mpi=list`). A task that dies ends the others at once.
srun --mpi="${HERMESFLOW_PMI:-pmix}" --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    "$program" run "$config" "$@"
