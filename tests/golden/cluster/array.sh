#!/bin/bash
#SBATCH --job-name=imagenet
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --array=0-20
#SBATCH --output=/scratch/runs/imagenet/logs/job-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --export=PATH,HOME,USER,LOGNAME,LANG,SLURM_CONF

# coatnet pretrain: 1 node × 1 rank; continued by requeue.
# Rendered by `coatnet submit`: submit again rather than edit. The ranks' command is in job.json.
set -e
umask 027
trap '' USR1  # until the supervisor listens, a warning ends nobody
export PYTHONPATH=/scratch/runs/imagenet/submissions/code-0123456789ab
cd /scratch/runs/imagenet/submissions/code-0123456789ab
exec /opt/coatnet/bin/python3 -m cluster.supervisor /scratch/runs/imagenet/submissions/0001/job.json

# what the supervisor starts, one word a line
#   srun
#   --nodes=2
#   --nodelist=n1,n2
#   --ntasks=2
#   --ntasks-per-node=1
#   --cpus-per-task=32
#   --kill-on-bad-exit=1
#   --wait=120
#   --export=ALL
#   --output=/scratch/runs/imagenet/logs/life-001.try-1.rank-%t.log
#   /opt/coatnet/bin/coatnet
#   pretrain
#   /scratch/runs/imagenet/submissions/0001/config.yaml
