#!/bin/sh
# make test-slurm: a SLURM of one host, for the time of its tests. Needs root on Debian or Ubuntu.
set -eu
PYTHON=${1:-.venv/bin/python}

command -v slurmctld >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge
"$PYTHON" -m pip install --quiet 'submitit>=1.5'

HOST=$(hostname -s)
mkdir -p /run/munge /var/log/munge /etc/slurm /var/spool/slurmctld /var/spool/slurmd
chown munge /run/munge /var/log/munge
cat >/etc/slurm/slurm.conf <<CONF
ClusterName=noah
SlurmctldHost=$HOST
SlurmUser=root
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
JobRequeue=1
KillWait=2
UnkillableStepTimeout=120
MailProg=/bin/true
NodeName=$HOST CPUs=$(nproc --all) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF

stop() {
    pkill slurmd || true
    pkill slurmctld || true
    pkill slurmstepd || true
    pkill munged || true
}
trap stop EXIT
stop
sleep 1
runuser -u munge -- munged --force
slurmctld -c
slurmd -c
for _ in $(seq 30); do
    sinfo -h -o %T | grep -q idle && break
    sleep 1
done
sinfo
"$PYTHON" -m pytest -m slurm tests/test_slurm.py
