#!/usr/bin/env bash
# Two hosts on one machine: two network namespaces with host names of their own, joined by a veth pair. A run by mpirun over
# both, with TCP between them, must leave the files of a run by one process.
#
#     cargo build --release --features mpi
#     sudo tools/mpi/two_hosts.sh [target/release/hermesflow]
#
# Needs Linux, root, iproute2, util-linux and Open MPI. Everything is removed at the end.
set -euo pipefail
program=$(realpath "${1:-target/release/hermesflow}")
run=$(realpath "$(dirname "$0")/../../crates/hermesflow/tests/data/processes.yaml") # that of the tests of several processes
top=$(mktemp -d)
one=hf-one-$$ two=hf-two-$$
finish() {
    for space in "$one" "$two"; do
        ip netns pids "$space" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns del "$space" 2>/dev/null || true
    done
    rm -rf "$top"
}
trap finish EXIT

ip netns add "$one"
ip netns add "$two"
ip link add hf0 netns "$one" type veth peer name hf1 netns "$two"
ip -n "$one" addr add 10.213.7.1/24 dev hf0
ip -n "$two" addr add 10.213.7.2/24 dev hf1
for space in "$one" "$two"; do ip -n "$space" link set lo up; done
ip -n "$one" link set hf0 up
ip -n "$two" link set hf1 up

# What mpirun calls instead of ssh: the host, then the command. A PATH and a home are all that a login would give.
cat > "$top/agent" <<AGENT
#!/usr/bin/env bash
shift
exec ip netns exec "$two" unshare --uts sh -c "hostname two; \$*"
AGENT
chmod +x "$top/agent"

mkdir "$top/alone" "$top/hosts"
for folder in alone hosts; do cp "$run" "$top/$folder/run.yaml"; done
(cd "$top/alone" && RAYON_NUM_THREADS=1 "$program" run run.yaml)
cd "$top/hosts"
ip netns exec "$one" unshare --uts sh -c "hostname one; exec \"\$@\"" sh \
    mpirun --allow-run-as-root --oversubscribe --bind-to none --host 10.213.7.1:2,10.213.7.2:2 -n 4 \
    --mca plm_rsh_agent "$top/agent" --mca plm_rsh_no_tree_spawn 1 --mca btl self,vader,tcp \
    --mca btl_tcp_if_include 10.213.7.0/24 --mca oob_tcp_if_include 10.213.7.0/24 \
    -x RAYON_NUM_THREADS=1 sh -c "hostname > \"$top/host-\$OMPI_COMM_WORLD_RANK\"; exec \"$program\" run run.yaml"
sent=$(ip -n "$one" -s -j link show hf0 | grep -o '"tx":{"bytes":[0-9]*' | grep -o '[0-9]*$')
hosts=$(cat "$top"/host-* | sort | uniq -c | tr -s ' \n' ' ')
diff -r "$top/alone" "$top/hosts"
echo "the same bytes from two hosts ($hosts); $((sent / 1000000)) MB went over the link from the first"
