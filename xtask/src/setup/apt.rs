//! A private apt state: package lists, status and cache of our own below `target/umbra/apt/`, so that
//! packages of other suites and another architecture can be had without root and without touching
//! the system's package database.
//!
//! The system's `apt.conf.d` (proxies, certificates) is still read, and signatures are checked with
//! the keys that the system's own sources name. Only `apt` and `dpkg-deb` are used, which every
//! Debian has.

use super::sources::Archive;
use crate::cargo::{read, run};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Debian releases in order; each has `CODENAME` and `CODENAME-backports`.
const RELEASES: [&str; 5] = ["bullseye", "bookworm", "trixie", "forky", "duke"];

/// The codename in /etc/os-release.
pub(crate) fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let value = text
        .lines()
        .find_map(|l| l.strip_prefix("VERSION_CODENAME="));
    let Some(name) = value
        .map(|v| v.trim_matches('"'))
        .filter(|v| RELEASES.contains(v))
    else {
        bail!(
            "/etc/os-release names no Debian release known here ({})",
            RELEASES.join(", ")
        );
    };
    Ok(name.to_owned())
}

/// This release, its backports, and the same of the next release, in this order.
pub(crate) fn suites(codename: &str) -> Vec<String> {
    let at = RELEASES
        .iter()
        .position(|r| *r == codename)
        .unwrap_or(RELEASES.len());
    RELEASES
        .iter()
        .skip(at)
        .take(2)
        .flat_map(|r| [(*r).to_owned(), format!("{r}-backports")])
        .collect()
}

/// What apt is told of the packages that are installed already.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Installed {
    /// Nothing: single packages are fetched by name.
    Nothing,
    /// What this system has, so that only what it lacks is asked for.
    LikeSystem,
}

/// A private apt state with its lists fetched.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
    suites: Vec<String>,
}

impl Apt {
    /// Makes the state in `dir` for `suites` and fetches their lists. A suite that the mirror does
    /// not have yet (backports of a release to come) is no error; having none is.
    pub(crate) fn new(
        dir: &Path,
        architecture: &str,
        suites: &[String],
        installed: Installed,
    ) -> Result<Self> {
        for part in [
            "lists/partial",
            "cache/archives/partial",
            "sources.d",
            "none.d",
            "debs",
        ] {
            fs::create_dir_all(dir.join(part)).with_context(|| format!("{}", dir.display()))?;
        }
        let apt = Self {
            dir: dir.to_path_buf(),
            suites: suites.to_vec(),
        };
        let status = dir.join("status");
        match installed {
            Installed::Nothing => fs::write(&status, "")?,
            Installed::LikeSystem => {
                fs::copy("/var/lib/dpkg/status", &status).context("the system's dpkg status")?;
            }
        }
        let archive = Archive::of_system(Path::new("/etc/apt"), &codename()?)?;
        let stanzas: Vec<String> = suites.iter().map(|s| archive.stanza(s)).collect();
        fs::write(dir.join("sources.d/umbra.sources"), stanzas.join("\n"))?;
        fs::write(dir.join("apt.conf"), configuration(dir, architecture))?;
        // apt-get says which suite is missing, keeps the lists of the others, and may still succeed.
        let out = apt
            .command("apt-get")
            .args(["-qq", "update"])
            .output()
            .context("apt-get")?;
        if !apt.has_lists()? {
            bail!(
                "no package lists from the mirror in apt's sources (is there a network?)\n{}",
                String::from_utf8_lossy(&out.stderr).trim_end()
            );
        }
        Ok(apt)
    }

    /// Whether any suite's list is there.
    fn has_lists(&self) -> Result<bool> {
        let lists = self.dir.join("lists");
        let entries = fs::read_dir(&lists).with_context(|| format!("{}", lists.display()))?;
        for entry in entries {
            if entry?.file_name().to_string_lossy().contains("_Packages") {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn command(&self, program: &str) -> Command {
        let mut cmd = Command::new(program);
        cmd.arg("-c")
            .arg(self.dir.join("apt.conf"))
            .env("LC_ALL", "C");
        cmd
    }

    /// All package names that begin with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = read(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Whether a package can be downloaded: a name may be known from a dependency alone.
    pub(crate) fn has(&self, package: &str) -> Result<bool> {
        Ok(!read(self.command("apt-cache").args(["madison", package]))?
            .trim()
            .is_empty())
    }

    /// The packages that installing `package` from the newest suite would add, itself included.
    pub(crate) fn would_install(&self, package: &str) -> Result<Vec<String>> {
        let mut cmd = self.command("apt-get");
        if let Some(suite) = self.suites.last() {
            cmd.args(["-t", suite]);
        }
        let text = read(cmd.args(["-qq", "-s", "install", package]))?;
        let names = text
            .lines()
            .filter_map(|l| l.strip_prefix("Inst ")?.split_whitespace().next());
        Ok(names
            .map(|n| n.split(':').next().unwrap_or(n).to_owned())
            .collect())
    }

    /// Downloads packages and gives the `.deb` files. What an earlier, broken run left is removed.
    pub(crate) fn download(&self, packages: &[String]) -> Result<Vec<Deb>> {
        let debs = self.dir.join("debs");
        fs::remove_dir_all(&debs)?;
        fs::create_dir_all(&debs)?;
        let mut cmd = self.command("apt-get");
        if let Some(suite) = self.suites.last() {
            cmd.args(["-t", suite]);
        }
        run(cmd
            .args(["-qq", "download"])
            .args(packages)
            .current_dir(&debs))?;
        let mut files: Vec<PathBuf> = fs::read_dir(&debs)?
            .map(|e| Ok(e?.path()))
            .collect::<Result<_>>()?;
        files.retain(|f| f.extension().is_some_and(|e| e == "deb"));
        files.sort();
        files.into_iter().map(Deb::open).collect()
    }
}

/// The private configuration. Hooks of container images that empty caches or start services are
/// cleared, and so are the indexes of graphical software centres (14 MB for nothing).
fn configuration(dir: &Path, architecture: &str) -> String {
    let d = dir.display();
    format!(
        "APT::Architecture \"{architecture}\";\n\
         #clear APT::Architectures;\nAPT::Architectures \"{architecture}\";\n\
         Dir::State \"{d}\";\nDir::State::lists \"{d}/lists\";\nDir::State::status \"{d}/status\";\n\
         Dir::Cache \"{d}/cache\";\nDir::Etc::sourcelist \"/dev/null\";\nDir::Etc::sourceparts \"{d}/sources.d\";\n\
         Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"{d}/none.d\";\n\
         APT::Sandbox::User \"\";\nAcquire::Languages \"none\";\nAPT::Install-Recommends \"false\";\n\
         #clear Acquire::IndexTargets::deb::DEP-11;\n#clear Acquire::IndexTargets::deb::DEP-11-icons-small;\n\
         #clear Acquire::IndexTargets::deb::DEP-11-icons;\n#clear Acquire::IndexTargets::deb::DEP-11-icons-hidpi;\n\
         #clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n#clear DPkg::Post-Invoke;\n"
    )
}

/// A downloaded package.
#[derive(Debug)]
pub(crate) struct Deb {
    file: PathBuf,
    /// The package's name.
    pub(crate) name: String,
    /// The package's version.
    pub(crate) version: String,
}

impl Deb {
    fn open(file: PathBuf) -> Result<Self> {
        let field = |name: &str| read(Command::new("dpkg-deb").arg("-f").arg(&file).arg(name));
        let (name, version) = (
            field("Package")?.trim().to_owned(),
            field("Version")?.trim().to_owned(),
        );
        Ok(Self {
            file,
            name,
            version,
        })
    }

    /// Unpacks the whole package below `root`.
    pub(crate) fn unpack(&self, root: &Path) -> Result<()> {
        run(Command::new("dpkg-deb").arg("-x").arg(&self.file).arg(root))
    }

    /// Hands every regular file in the package to `take`, as its path and its reader.
    pub(crate) fn each_file(
        &self,
        mut take: impl FnMut(&str, &mut dyn std::io::Read) -> Result<()>,
    ) -> Result<()> {
        let mut child = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&self.file)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start dpkg-deb")?;
        let stream = child.stdout.take().context("dpkg-deb gives no output")?;
        let mut tar = tar::Archive::new(stream);
        for entry in tar.entries()? {
            let mut entry = entry?;
            if entry.header().entry_type().is_file() {
                let path = entry.path()?.to_string_lossy().into_owned();
                take(path.trim_start_matches("./"), &mut entry)?;
            }
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("dpkg-deb could not read {}: {status}", self.file.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::suites;

    #[test]
    fn this_release_comes_before_the_next() {
        assert_eq!(
            suites("bookworm"),
            [
                "bookworm",
                "bookworm-backports",
                "trixie",
                "trixie-backports"
            ]
        );
        assert_eq!(suites("duke"), ["duke", "duke-backports"]);
    }
}
