#!/usr/bin/env bash
# joblib.cpu_count reads the processor quota of the cgroup file system's root, which is the container's: the quota of a
# systemd unit (CPUQuota=) or of any group below is not seen, and as many processes start as there are cores.
# What one expects: the quota of the process's own group counts, since its documentation says that quotas do. Needs the
# right to make a group and move into it; 2 without.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  joblib==1.6.0 || exit 2
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  group=/sys/fs/cgroup/expunge-finding-$$ quota=cpu.max value="100000 100000"
else
  group=/sys/fs/cgroup/cpu/expunge-finding-$$ quota=cpu.cfs_quota_us value=100000
fi
[ "$(nproc)" -gt 1 ] && mkdir "$group" 2>/dev/null || exit 2
trap 'rmdir "$group"; rm -rf "$folder"' EXIT
{ echo "$value" >"$group/$quota"; } 2>/dev/null || exit 2
counted=$(sh -c 'echo $$ >"$0/cgroup.procs" && exec venv/bin/python -c "import joblib; print(joblib.cpu_count())"' "$group") || exit 2
echo "joblib 1.6.0"
echo "expected: 1, under a quota of one processor of $(nproc)"
echo "found:    $counted"
[ "$counted" = "$(nproc)" ]
