#!/usr/bin/env bash
# The smoke suite through a real Slurm of one node, started here and stopped at the end. One job is
# killed while it runs and has to be submitted again. Needs Debian's slurm-wlm and munge, and root.
set -euo pipefail

for program in munged mungekey slurmctld slurmd squeue scancel; do
  command -v $program > /dev/null || { echo "error: $program is missing: apt-get install slurm-wlm munge" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "error: slurmd starts jobs as their users and needs root" >&2; exit 1; }

conf=/etc/slurm/slurm.conf # where jobs look for it
[ ! -e $conf ] || { echo "error: $conf exists: this machine has a Slurm of its own" >&2; exit 1; }
repository=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
pids=()
stop() {
  scancel --user root 2> /dev/null || true
  kill "${pids[@]}" 2> /dev/null || true
  [ -f "$work/munge.pid" ] && kill "$(cat "$work/munge.pid")" 2> /dev/null
  wait 2> /dev/null || true
  rm -rf "$work" $conf
}
trap stop EXIT

node=$(hostname -s)
memory=$(awk '/MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)
mkdir -m 0700 "$work/munge" && mkdir "$work/state" "$work/spool"
mungekey --create --keyfile "$work/munge/key"
munged --force --key-file "$work/munge/key" --socket "$work/munge/socket" --pid-file "$work/munge.pid" \
  --log-file "$work/munge/log" --seed-file "$work/munge/seed"
mkdir -p "$(dirname $conf)"
cat > $conf <<CONF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldPort=26817
SlurmdPort=26818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MinJobAge=3600
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=test Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
slurmctld -D > "$work/slurmctld.log" 2>&1 & pids+=($!)
slurmd -D -N "$node" > "$work/slurmd.log" 2>&1 & pids+=($!)
for _ in $(seq 30); do sinfo -h -o %T 2> /dev/null | grep -q idle && break; sleep 1; done
sinfo -h -o %T | grep -q idle || { echo "error: Slurm did not start" >&2; tail -5 "$work"/slurm*.log >&2; exit 1; }
echo "Slurm $(sinfo --version | cut -d' ' -f2) with one node is up"

git clone --quiet "$repository" "$work/clone"
cd "$work/clone"
ln -s "$repository/.venv" .venv
(cd "$repository" && .venv/bin/python -m pip show -q snakemake-executor-plugin-slurm)
.venv/bin/snakemake --configfile config/smoke.yaml --workflow-profile profiles/slurm --quiet host rules --nolock \
  --jobs 2 --slurm-no-account --slurm-status-command squeue > "$work/sweep.log" 2>&1 & sweep=$!
killed=
while kill -0 $sweep 2> /dev/null; do
  if [ -z "$killed" ]; then
    killed=$(squeue -h -t RUNNING -o %i | head -1)
    [ -n "$killed" ] && sleep 5 && scancel --signal=KILL --full "$killed" && echo "killed job $killed"
  fi
  sleep 1
done
wait $sweep || { tail -40 "$work/sweep.log" >&2; echo "error: the sweep failed" >&2; exit 1; }

jobs=$(squeue -h -t all -o %T | sort | uniq -c | tr '\n' ' ')
.venv/bin/python -m workflow.verify config/smoke.yaml
test -f results/smoke/book/_build/html/index.html
[ -n "$killed" ] || { echo "error: no job was seen running" >&2; exit 1; }
state=$(squeue -h -t all -j "$killed" -o %T)
[ "$state" != COMPLETED ] || { echo "error: job $killed was not killed" >&2; exit 1; }
echo "smoke suite through Slurm: $jobs; job $killed ended $state and was submitted again; tables verified"
