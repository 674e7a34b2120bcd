//! The page in a headless Chromium, where that and Playwright are installed: `deploy/setup.sh page`.

use std::path::Path;
use std::process::Stdio;

use anyhow::ensure;
use tests::harness::{Rig, root};

use super::client::Client;
use super::rig::with_pipeline;

/// Length of the video, seconds: several ranges, and not too long to watch for a test.
const SECONDS: u32 = 20;

#[test]
fn the_page_shows_the_true_ranges_of_a_video_that_is_dropped_on_it() -> anyhow::Result<()> {
    let python = std::env::var("PAGE_PYTHON").map_or(root().join(".vidi/page"), Into::into).join("bin/python");
    if !python.is_file() || !Path::new("/usr/bin/chromium").is_file() {
        eprintln!("skipped: {} or /usr/bin/chromium is not there: run deploy/setup.sh page", python.display());
        return Ok(());
    }
    with_pipeline(async |rig, client| driven(&python, rig, client).await)
}

async fn driven(python: &Path, rig: &Rig, client: &Client) -> anyhow::Result<()> {
    let (video, _) = rig.demo_video(7, SECONDS)?;
    // The picture of deploy/README.md comes from here.
    let screenshot = std::env::var("PAGE_SCREENSHOT").map_or(rig.dir.path().join("page.jpg"), Into::into);
    let output = tokio::process::Command::new(python)
        .arg(root().join("tests/tests/system/gateway/page.py"))
        .arg(format!("http://{}/", client.address))
        .args([&video, &video.with_extension("json"), &screenshot])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(said.contains("IoU") && screenshot.metadata()?.len() > 10_000, "{said}");
    Ok(())
}
