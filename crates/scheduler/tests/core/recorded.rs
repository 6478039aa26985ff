//! Random events as stock played them (`stock.py --random` wrote them).

use std::collections::BTreeMap;

use oxidask_scheduler::Config;

use crate::env::Env;

#[test]
fn ours_plays_what_stock_played() {
    play_all(include_str!("stock.txt"));
}

#[test]
fn ours_steals_as_stock_stole() {
    play_all(include_str!("stealing.txt"));
}

fn play_all(transcripts: &str) {
    let mut failures = String::new();
    for transcript in transcripts.split("\n\n") {
        if let Some((head, rest)) = transcript.trim().split_once('\n') {
            let worker_saturation = head.rsplit(' ').next().unwrap().parse().unwrap();
            let config = Config {
                worker_saturation,
                ..Config::default()
            };
            if let Err(failure) = play(config, rest) {
                failures += &format!("{head}\n{failure}\n");
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// Plays the commands and compares what each peer is told, command by command.
fn play(config: Config, transcript: &str) -> Result<(), String> {
    let mut env = Env::new(config);
    let mut lines = transcript.lines().peekable();
    while let Some(command) = lines.next() {
        let mut expected = Vec::new();
        while let Some(line) = lines.next_if(|line| line.starts_with("  ")) {
            expected.push(line.trim().to_owned());
        }
        let mut played = by_peer(&env.command(command));
        let mut expected = by_peer(&expected);
        if command.starts_with("finish") && command.ends_with("run=0") {
            // A late report: stock has the result freed also where it is an input.
            for lines in played.values_mut().chain(expected.values_mut()) {
                lines.retain(|line| !line.starts_with("free "));
            }
            played.retain(|_, lines| !lines.is_empty());
            expected.retain(|_, lines| !lines.is_empty());
        }
        if played != expected {
            return Err(format!("  {command}\n{}", differences(&expected, &played)));
        }
    }
    Ok(())
}

fn differences(
    stock: &BTreeMap<String, Vec<String>>,
    ours: &BTreeMap<String, Vec<String>>,
) -> String {
    let mut text = String::new();
    let nothing = Vec::new();
    let peers: std::collections::BTreeSet<&String> = stock.keys().chain(ours.keys()).collect();
    for peer in peers {
        let (stock, ours) = (
            stock.get(peer).unwrap_or(&nothing),
            ours.get(peer).unwrap_or(&nothing),
        );
        let same = stock
            .iter()
            .zip(ours)
            .take_while(|(stock, ours)| stock == ours)
            .count();
        if stock != ours {
            text += &format!("    {peer} after {same} equal lines\n");
            text += &format!(
                "      stock {:?}\n",
                &stock[same..stock.len().min(same + 3)]
            );
            text += &format!("      ours  {:?}\n", &ours[same..ours.len().min(same + 3)]);
        }
    }
    text
}

/// Lines per peer: how messages to different peers interleave is nobody's business.
fn by_peer(lines: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut by_peer: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in lines {
        let mut words = line.splitn(3, ' ');
        let (sign, peer) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let rest = words.next().unwrap_or_default();
        match (sign, rest.strip_prefix("free ")) {
            ("~" | "!", _) => {}
            ("=", _) => by_peer
                .entry(sign.to_owned())
                .or_default()
                .push(line.clone()),
            (_, Some(keys)) => {
                let of_peer = by_peer.entry(peer.to_owned()).or_default();
                of_peer.extend(keys.split(' ').map(|key| format!("free {key}")));
            }
            (_, None) => by_peer
                .entry(peer.to_owned())
                .or_default()
                .push(rest.to_owned()),
        }
    }
    by_peer
}
