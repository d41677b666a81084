"""An NFS server and two nodes that mount what it exports, all with kernels of their own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from virtual_nodes import Node, Switch
from virtual_nodes import missing as missing_for_nodes

MOUNT = Path("/mnt/share")
_DISK_BYTES = 1 << 30
_GRACE_SECONDS = 10  # the least that the server takes
_SERVE = f"""
mkdir -p {MOUNT} /var/lib/nfs/v4recovery /var/lib/nfs/rpc_pipefs
mount /dev/ubda {MOUNT}
mount -t nfsd nfsd /proc/fs/nfsd
echo {_GRACE_SECONDS} > /proc/fs/nfsd/nfsv4gracetime
echo {_GRACE_SECONDS} > /proc/fs/nfsd/nfsv4leasetime
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
exportfs -o rw,sync,no_root_squash,no_subtree_check,fsid=0 "*:{MOUNT}"
rpc.mountd --no-udp -N 2 -N 3
rpc.nfsd --no-nfs-version 3
"""


def missing() -> str | None:
    """Return what keeps this from running here, or None."""
    if (reason := missing_for_nodes()) is not None:
        return reason
    if shutil.which("rpc.nfsd") is None or shutil.which("mount.nfs4") is None:
        return "no NFS here: apt install nfs-kernel-server nfs-common"
    return None


class Cluster:
    """A server and two nodes of its file system, which mount what it exports."""

    def __init__(self, folder: Path, *, options: str) -> None:
        self._switch, self._options = Switch(folder), options
        self._disk = folder / "disk"
        with self._disk.open("wb") as disk:
            disk.truncate(_DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", str(self._disk)], check=True)
        self.server = self._boot_server()
        self.nodes = [self.boot(number) for number in range(2)]

    def boot(self, number: int) -> Node:
        """Boot a node and mount the export."""
        node = Node(number + 2, switch=self._switch)
        node.load("nfsv4")
        node.run("mkdir", "-p", MOUNT)
        node.run("mount", "-t", "nfs4", "-o", self._options, f"{self.server.address}:/", MOUNT)
        return node

    def cut_server(self) -> None:
        """Cut the server's power and boot it again on the same disk."""
        self.server.cut_power()
        self.server = self._boot_server()

    def close(self) -> None:
        """Cut everybody's power."""
        for node in (*self.nodes, self.server):
            node.cut_power()
        self._switch.close()

    def _boot_server(self) -> Node:
        server = Node(1, switch=self._switch, memory="512M", disk=self._disk)
        server.load("nfsd")
        server.run("sh", "-e", "-c", _SERVE)
        return server
