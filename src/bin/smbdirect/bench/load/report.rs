//! Figures of the load.

use serde_json::Value;

use super::client::{Class, Done, Outcome};
use super::{Memory, Row};

pub(super) fn rows(done: &Outcome, looks: &[Memory], cpu: f64, storm: &Value) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut figure = |what: String, value: f64, unit, goal| {
        rows.push(Row {
            what,
            ours: value,
            tcp: None,
            unit,
            goal,
        });
    };
    for class in Class::ALL {
        let links: Vec<&Done> = done.links.iter().filter(|it| it.class == class).collect();
        if links.is_empty() {
            continue;
        }
        let name = format!("{} {}", links.len(), describe(class));
        let all = done.seconds[0] + done.seconds[1];
        let mut shares: Vec<f64> = links
            .iter()
            .map(|it| (it.answers[0] + it.answers[1]) as f64 / all)
            .collect();
        let rate = |half: usize| {
            let answers: u64 = links.iter().map(|it| it.answers[half]).sum();
            answers as f64 / done.seconds[half].max(1e-9)
        };
        let longest = |half: usize| {
            let longest = links.iter().map(|it| it.longest[half]).max();
            longest.unwrap_or_default().as_secs_f64() * 1e3
        };
        figure(format!("{name}: answers"), shares.iter().sum(), "1/s", "");
        figure(format!("{name}: Jain's index"), jain(&shares), "", "near 1");
        shares.sort_by(f64::total_cmp);
        let middle = shares[shares.len() / 2].max(1e-9);
        let (least, most) = (shares[0], shares[shares.len() - 1]);
        figure(format!("{name}: each, median"), middle, "1/s", "");
        figure(format!("{name}: slowest to median"), least / middle, "", "");
        figure(format!("{name}: fastest to median"), most / middle, "", "");
        figure(format!("{name}: longest answer"), longest(0), "ms", "");
        let beside = rate(1) / rate(0).max(1e-9);
        figure(format!("{name}: rate beside the storm"), beside, "", "");
        figure(format!("{name}: longest, storm"), longest(1), "ms", "");
    }
    let number = |key: &str| storm[key].as_f64().unwrap_or_default();
    let seconds = number("seconds").max(1e-9);
    figure(
        "storm: connections".into(),
        number("connections") / seconds,
        "1/s",
        "",
    );
    figure(
        "storm: of them served".into(),
        number("served") / seconds,
        "1/s",
        "",
    );
    figure("engine: processor".into(), cpu * 100.0, "%", "");
    let parts: [(&str, Part); 3] = [
        ("engine: memory of its own", |it| it.engine),
        ("handles: memory of their own", |it| it.handles),
        ("areas: committed", |it| it.areas),
    ];
    for (what, part) in parts {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let at = |index: usize| looks.get(index).map_or(0.0, |it| mib(part(it)));
        let most = looks.iter().map(part).max().unwrap_or_default();
        figure(format!("{what}, after a tenth"), at(0), "MiB", "");
        figure(format!("{what}, after a half"), at(4), "MiB", "");
        figure(format!("{what}, at the end"), at(9), "MiB", "");
        figure(format!("{what}, most"), mib(most), "MiB", "");
    }
    rows
}

/// One of the figures of memory.
type Part = fn(&Memory) -> u64;

fn describe(class: Class) -> &'static str {
    match class {
        Class::Small => "with PDUs of 256 bytes, 4 in flight",
        Class::Large => "with PDUs of 64 KiB",
        Class::Read => "with RDMA WRITEs of 64 KiB",
        Class::Write => "with RDMA READs of 64 KiB",
        Class::Quiet => "quiet, a PDU each second",
    }
}

/// 1: all have the same; 1/n: one has all.
fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|it| it * it).sum();
    if squares > 0.0 {
        sum * sum / (shares.len() as f64 * squares)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_tells_fair_from_unfair() {
        assert!((jain(&[5.0; 7]) - 1.0).abs() < 1e-9);
        assert!((jain(&[1.0, 0.0, 0.0, 0.0]) - 0.25).abs() < 1e-9);
        assert_eq!(jain(&[0.0; 3]), 0.0);
    }
}
