//! Two Debian guests of one umbra-vmm, on a switch: each finds the other, and a file goes over whole.

use crate::guest::{self, Item};
use crate::setup::GuestFiles;
use crate::workspace::Workspace;
use anyhow::Result;
use serde_json::json;

/// Where the settings of the pair lie in umbra's initrd.
pub(super) const SETTINGS: &str = "/guest/pair.json";

/// What either guest does, by its own word on the command line. `left` keeps a file, `right` fetches it
/// and tells when it has it; whatever does not happen in time is not told.
const SCRIPT: &str = r#"
side=$(value umbra.side none)
ip link set lo up
case $side in left) ip addr add 10.7.0.1/24 dev eth0 ;; *) ip addr add 10.7.0.2/24 dev eth0 ;; esac
ip link set eth0 up
echo "umbra: $side entropy $(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c)"
tries=0
again() { tries=$((tries + 1)); [ $tries -lt 100 ] && sleep 0.2; }
case $side in
left)
    mkdir /tmp/www && cd /tmp/www
    dd if=/dev/urandom of=file bs=64k count=32 2>/dev/null
    sha256sum file > file.sha256
    httpd -p 80 -h /tmp/www
    # Ends when the other side has connected.
    nc -l -p 81
    ;;
right)
    until ping -c 1 -W 1 10.7.0.1 > /dev/null || ! again; do :; done
    ping -c 3 10.7.0.1 | grep -q '3 packets received\|3 received' && echo "umbra: right pinged left"
    cd /tmp
    until wget -q -O file.sha256 http://10.7.0.1/file.sha256 || ! again; do :; done
    wget -q -O file http://10.7.0.1/file
    echo "umbra: right file $(wc -c < file) $(sha256sum -c file.sha256)"
    until echo done | nc 10.7.0.1 81 || ! again; do :; done
    ;;
esac
"#;

/// What the pair must say, as regular expressions.
pub(super) fn expectations(nonce: &str) -> Vec<String> {
    let report =
        |side: &str| format!(r"(?m)^umbra: storey=L1 cpus=1 mem=\d+MiB nonce={nonce}-{side}$");
    vec![
        report("left"),
        report("right"),
        r"(?m)^umbra: left entropy 64$".to_owned(),
        r"(?m)^umbra: right entropy 64$".to_owned(),
        r"(?m)^umbra: right pinged left$".to_owned(),
        r"(?m)^umbra: right file 2097152 file: OK$".to_owned(),
        r"(?m)^done$".to_owned(),
    ]
}

/// The pair's files: kernel, initrd, settings.
pub(super) fn items(ws: &Workspace, debian: &GuestFiles, nonce: &str) -> Result<[Item; 3]> {
    let script = [Item::text("/umbra-run", SCRIPT)];
    let initrd = guest::save(ws, "pair.cpio", &guest::initramfs(ws, debian, &script)?)?;
    let machine = |side: &str| {
        json!({
            "name": side,
            "kernel": "/guest/Image",
            "initrd": "/guest/initrd",
            "memory": "256M",
            "net": ["lan"],
            "rng": true,
            "console": "serial,lines=whole",
            "cmdline": format!(
                "console=ttyS0 quiet panic=-1 umbra.do=run umbra.side={side} umbra.nonce={nonce}-{side}"
            ),
        })
    };
    let settings = json!({ "machines": [machine("left"), machine("right")] });
    Ok([
        Item::from_file("/guest/Image", &debian.kernel)?,
        Item::from_file("/guest/initrd", &initrd)?,
        Item::text(SETTINGS, &settings.to_string()),
    ])
}
