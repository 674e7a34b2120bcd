//! The examples of deploy/README.md, "From your program", as they stand there but for the address, the video and the question.

use std::process::Stdio;

use anyhow::{Context, ensure};
use demo_video::truth::Answer;
use tests::harness::{Rig, root};

use super::client::Client;
use super::rig::with_pipeline;
use super::{SECONDS, question};

/// Python code blocks of a section of deploy/README.md.
fn examples() -> anyhow::Result<Vec<String>> {
    let readme = std::fs::read_to_string(root().join("deploy/README.md"))?;
    let (_, section) = readme.split_once("\n## From your program\n").context("no such section")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let blocks = section.split("```python\n").skip(1).filter_map(|block| block.split("\n```").next());
    Ok(blocks.map(str::to_owned).collect())
}

/// What an example that uses a package prints.
async fn printed(rig: &Rig, client: &Client, package: &str, changes: &[(&str, &str)]) -> anyhow::Result<String> {
    let example = examples()?.into_iter().find(|text| text.contains(package)).context(package.to_owned())?;
    ensure!(example.lines().count() <= 12, "{example}");
    let mut program = example;
    for (there, here) in [&[("127.0.0.1:8099", client.address.as_str())][..], changes].concat() {
        ensure!(program.contains(there), "no {there:?} in {program}");
        program = program.replace(there, here);
    }
    let python = std::env::var("CLIENTS_PYTHON").map_or(root().join(".vidi/clients"), Into::into).join("bin/python");
    ensure!(python.is_file(), "{} is not there: run deploy/setup.sh test", python.display());
    let output = tokio::process::Command::new(&python)
        .args(["-c", &program])
        .current_dir(rig.media())
        .env_remove("OPENAI_BASE_URL")
        .stdin(Stdio::null())
        .output()
        .await?;
    ensure!(output.status.success(), "{program}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn the_example_with_requests_prints_the_true_ranges() -> anyhow::Result<()> {
    with_pipeline(async |rig, client| {
        let (_, truth) = rig.demo_video(12, SECONDS)?;
        let asked = question(&truth, "retrieval")?;
        let changes = [("kitchen.mp4", "12.mp4"), ("a man slicing onions", &asked.query)];
        let said = printed(rig, client, "import requests", &changes).await?;
        let Answer::Ranges(ranges) = &asked.answer else { anyhow::bail!("{:?}", asked.answer) };
        ensure!(said.lines().count() == ranges.len(), "{said} and not {}", asked.answer);
        for (line, [start, end]) in said.lines().zip(ranges) {
            let times: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let [from, to] = times[..] else { anyhow::bail!("{line}") };
            ensure!((from - start).abs() < 1.0 && (to - end).abs() < 1.0, "{line} and not {}", asked.answer);
        }
        Ok(())
    })
}

#[test]
fn the_example_with_openai_prints_the_true_words_as_they_come() -> anyhow::Result<()> {
    with_pipeline(async |rig, client| {
        let (_, truth) = rig.demo_video(13, SECONDS)?;
        let asked = question(&truth, "qa")?;
        let changes = [("kitchen.mp4", "13.mp4"), ("What is he cooking?", &asked.query)];
        let said = printed(rig, client, "from openai import OpenAI", &changes).await?;
        let Answer::Text(words) = &asked.answer else { anyhow::bail!("{:?}", asked.answer) };
        ensure!(said.trim() == words, "{said} and not {words}");
        Ok(())
    })
}
