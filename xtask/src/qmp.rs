//! The few words of QEMU's monitor protocol that a time-out needs: all CPUs' registers, and memory.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A connection to the monitor of a machine. The machine is stopped by it: what is read fits together.
pub(crate) struct Monitor {
    lines: BufReader<UnixStream>,
    stream: UnixStream,
}

impl Monitor {
    /// Connects, and stops the machine.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("QEMU's monitor socket")?;
        // A QEMU that is itself stuck must not make the time-out wait for ever.
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut monitor = Self {
            lines: BufReader::new(stream.try_clone()?),
            stream,
        };
        monitor.next()?;
        monitor.ask(&json!({ "execute": "qmp_capabilities" }))?;
        monitor.ask(&json!({ "execute": "stop" }))?;
        Ok(monitor)
    }

    /// What `info registers -a` of the human monitor says.
    pub(crate) fn registers(&mut self) -> Result<String> {
        let command = json!({
            "execute": "human-monitor-command",
            "arguments": { "command-line": "info registers -a" },
        });
        let answer = self.ask(&command)?;
        Ok(answer.as_str().unwrap_or_default().replace('\r', ""))
    }

    /// The memory `[pa, pa + bytes)`, by way of a file that QEMU writes.
    pub(crate) fn memory(&mut self, pa: u64, bytes: u64, file: &Path) -> Result<Vec<u8>> {
        let command = json!({
            "execute": "pmemsave",
            "arguments": { "val": pa, "size": bytes, "filename": file },
        });
        self.ask(&command)?;
        let memory = std::fs::read(file).context("the memory that QEMU saved");
        // A leftover would do no harm; that it is gone is only tidy.
        let _ = std::fs::remove_file(file);
        memory
    }

    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("QEMU closed its monitor");
        }
        serde_json::from_str(&line).context("QEMU's monitor says no JSON")
    }

    fn ask(&mut self, command: &Value) -> Result<Value> {
        writeln!(self.stream, "{command}")?;
        loop {
            // Events may come in between.
            let mut answer = self.next()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU's monitor refuses {command}: {error}");
            }
        }
    }
}

/// Each CPU's number and program counter, from the text of `info registers -a`.
pub(crate) fn program_counters(text: &str) -> Vec<(u32, u64)> {
    let mut cpu = None;
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(number) = line.trim().strip_prefix("CPU#") {
            cpu = number.trim().parse().ok();
        }
        let pc = line.split_whitespace().find_map(|w| w.strip_prefix("PC="));
        if let (Some(cpu), Some(pc)) = (cpu, pc.and_then(|pc| u64::from_str_radix(pc, 16).ok())) {
            found.push((cpu, pc));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::program_counters;

    #[test]
    fn pcs_of_all_cpus() {
        let text = "\nCPU#0\n PC=ffff000040201234 X00=0000000000000000 X01=0\n SP=1 PSTATE=3c9\n\nCPU#1\n PC=0000000040200000 X00=1\n";
        assert_eq!(
            program_counters(text),
            [(0, 0xffff_0000_4020_1234), (1, 0x4020_0000)]
        );
        assert!(program_counters("no registers").is_empty());
    }
}
