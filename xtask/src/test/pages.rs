//! The report in a browser: headless Chromium opens pages of an empty, a crashed and a huge trace, wide
//! and light, narrow and dark, and a script in each copy says what is wrong with it (`probe.js`).
//! Skipped where there is no Chromium.

use super::Filter;
use super::report::Tally;
use crate::guard;
use crate::trace::{About, page_of, sample};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const PROBE: &str = include_str!("probe.js");
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// Width and whether it is dark.
const VIEWS: [(u32, bool); 2] = [(1280, false), (400, true)];

/// What the page of a run has, each with its heading; of one that ended badly its last events too.
const SECTIONS: [&str; 6] = ["time", "exits", "map", "shadows", "errors", "counts"];
const LAST: &str = "last";

/// Chromium makes no window narrower.
const NARROWEST: u32 = 500;

/// A page that breaks every rule, to see that each breach is found.
const BROKEN: &str = "<!DOCTYPE html><html><head><style>th button{all:unset}</style></head><body>\
<p style=\"color:#ccc;background:#ddd;width:3000px\">pale</p><section id=\"lost\"></section>\
<table><caption>t</caption><thead><tr><th class=\"n\"><button>a</button></th></tr></thead><tbody>\
<tr><td data-v=\"2\">2</td></tr><tr><td data-v=\"1\">1</td></tr><tr><td data-v=\"3\">3</td></tr></tbody></table>\
<img src=\"data:image/gif;base64,R0lGODlhAQABAAAAACw=\"><i role=\"img\"></i><button tabindex=\"-1\">b</button><script>nothing()</script></body></html>";
/// What must be said of it.
const BREACHES: [&str; 9] = [
    "the page is 3",
    "script failed",
    "no title",
    "there is no section last",
    "lost is not seen",
    "contrast 1",
    "does not reach a BUTTON",
    "a I has no name",
    "does not sort",
];

/// Runs what the filter takes.
pub(crate) fn run(ws: &Workspace, filter: &Filter, tally: &mut Tally) -> Result<()> {
    let crashed = About {
        name: "crashed",
        end: ("umbra panicked, status 70".to_owned(), false),
        qemu: "",
    };
    let named = |name| About {
        name,
        end: ("ended".to_owned(), true),
        qemu: "",
    };
    let with_last = [&SECTIONS[..], &[LAST]].concat();
    type Pages<'a> = [(&'a str, fn() -> Vec<u8>, About<'a>, &'a [&'a str]); 3];
    let pages: Pages<'_> = [
        ("report/empty", sample::empty, named("empty"), &[]),
        ("report/crashed", sample::crashed, crashed, &with_last),
        ("report/huge", sample::huge, named("huge"), &SECTIONS),
    ];
    let browser = BROWSERS.iter().find_map(|name| find(name));
    for (name, bytes, about, sections) in &pages {
        if filter.takes(name) {
            judge(tally, name, browser.as_deref(), |browser| {
                let page = page_of(&bytes(), about)?;
                VIEWS.iter().try_for_each(|view| {
                    match look(ws, browser, name, (&page, sections), *view)?.as_str() {
                        "good" => Ok(()),
                        verdict => bail!("{view:?}: {verdict}"),
                    }
                })
            });
        }
    }
    let name = "report/checker";
    if filter.takes(name) {
        judge(tally, name, browser.as_deref(), |browser| {
            let verdict = look(ws, browser, name, (BROKEN, &[LAST]), VIEWS[0])?;
            let missed = BREACHES.iter().find(|breach| !verdict.contains(**breach));
            match missed {
                Some(missed) => bail!("a page that breaks the rules passes {missed:?}: {verdict}"),
                None => Ok(()),
            }
        });
    }
    Ok(())
}

fn judge(
    tally: &mut Tally,
    name: &str,
    browser: Option<&Path>,
    test: impl FnOnce(&Path) -> Result<()>,
) {
    let Some(browser) = browser else {
        tally.skip(name, "no Chromium (apt-get install chromium)");
        return;
    };
    let start = Instant::now();
    let result = test(browser).map_err(|why| format!("{why:#}"));
    tally.result(name, start.elapsed().as_secs_f64(), result);
}

fn find(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// The page in a frame of that width, in a document of its own.
fn framed(page: &str, width: u32) -> String {
    let page = page.replace('&', "&amp;").replace('"', "&quot;");
    format!(
        "<!DOCTYPE html><html><head><meta name=\"color-scheme\" content=\"light dark\"></head><body><iframe style=\"width:{width}px;height:900px;border:0\" srcdoc=\"{page}\"></iframe></body></html>"
    )
}

/// What the page's probe says in the browser.
fn look(
    ws: &Workspace,
    browser: &Path,
    name: &str,
    (page, sections): (&str, &[&str]),
    (width, dark): (u32, bool),
) -> Result<String> {
    let folder = ws.folder("run")?;
    let file = folder.join(format!("test-{}.html", name.replace('/', "-")));
    let first = "<head><script>window.failures=[];addEventListener(\"error\",(e)=>failures.push(e.message))</script>";
    let last = format!(
        "<script>const DARK={dark},WIDTH={width},SECTIONS={sections:?};\n{PROBE}</script></body>"
    );
    let page = page.replacen("<head>", first, 1);
    let mut page = page.replacen("</body>", &last, 1);
    if width < NARROWEST {
        page = framed(&page, width);
    }
    fs::write(&file, page).with_context(|| format!("cannot write {}", file.display()))?;
    let scheme = if dark { 0 } else { 1 };
    let mut cmd = Command::new(browser);
    cmd.args([
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--timeout=60000",
        "--dump-dom",
    ]);
    cmd.arg(format!("--blink-settings=preferredColorScheme={scheme}"));
    cmd.arg(format!("--window-size={width},900"));
    let profile = folder.join("chromium");
    cmd.arg(format!("--user-data-dir={}", profile.display()));
    cmd.arg(format!("file://{}", file.display()));
    let mut guarded = guard::command(&cmd, guard::Options::default())?;
    let out = guarded
        .stdin(Stdio::null())
        .output()
        .context("cannot start Chromium")?;
    let dom = String::from_utf8_lossy(&out.stdout);
    let verdict = dom.split_once("data-verdict=\"");
    let verdict = verdict.and_then(|(_, rest)| rest.split_once('"'));
    match verdict {
        Some((verdict, _)) => Ok(verdict.to_owned()),
        None => bail!(
            "the page says nothing: {}",
            super::report::tail(&String::from_utf8_lossy(&out.stderr), 10)
        ),
    }
}
