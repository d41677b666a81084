#!/bin/bash
#SBATCH --job-name=imagenet
#SBATCH --nodes=9
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=1-00:00:00
#SBATCH --gpus-per-node=8
#SBATCH --constraint=h100&ib
#SBATCH --exclude=n[7-9]
#SBATCH --output=/scratch/runs/imagenet/logs/job-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --no-requeue
#SBATCH --export=PATH,HOME,USER,LOGNAME,LANG,SLURM_CONF,HF_HOME
#SBATCH --mail-type=FAIL

# coatnet pretrain: 8 nodes × 8 ranks, 1 spare; continued by chain.
# Rendered by `coatnet submit`: submit again rather than edit. The ranks' command is in job.json.
type module > /dev/null 2>&1 || { path=$PATH; . /etc/profile; PATH=$path; }
set -e
umask 027
trap '' USR1  # until the supervisor listens, a warning ends nobody
module load cuda/12.6
source /site/setup.sh
export PYTHONPATH=/scratch/runs/imagenet/submissions/code-0123456789ab
cd /scratch/runs/imagenet/submissions/code-0123456789ab
exec /opt/coatnet/bin/python3 -m cluster.supervisor /scratch/runs/imagenet/submissions/0001/job.json

# what the supervisor starts, one word a line
#   srun
#   --nodes=2
#   --nodelist=n1,n2
#   --ntasks=16
#   --ntasks-per-node=8
#   --cpus-per-task=8
#   --kill-on-bad-exit=1
#   --wait=120
#   --export=ALL
#   --output=/scratch/runs/imagenet/logs/life-001.try-1.rank-%t.log
#   /opt/coatnet/bin/coatnet
#   pretrain
#   /scratch/runs/imagenet/submissions/0001/config.yaml
