//! Where the deployment says its time went: the histograms of `/metrics`, read before and after a load.
//!
//! Refuses to judge: it reports the mean of each stage between two readings. Invariant: a stage without observations has no
//! mean.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use super::wire::Wire;
use crate::telemetry::metric;

/// The stages of a turn, in the order in which it goes through them.
const STAGES: &[(&str, &str)] = &[
    (metric::HTTP_REQUEST_DURATION, "webhook"),
    (metric::STREAM_WAIT, "stream"),
    (metric::LANE_WAIT, "lane"),
    (metric::TURN_DURATION, "turn"),
    (metric::OVERHEAD, "turn less responder"),
    (metric::COMMIT_DURATION, "commit"),
    (metric::END_TO_END, "reply created to sent"),
];

/// What the deployment said of itself at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Reading {
    /// Sums and counts of every histogram, and the gauges.
    sums: BTreeMap<String, f64>,
    /// Inbound partitions that it holds.
    pub(super) inbound_partitions: u16,
}

/// The mean time of one stage during a load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    pub stage: &'static str,
    pub count: f64,
    pub mean_ms: f64,
}

impl Reading {
    /// Asks the deployment; empty when it does not answer, such as when its HTTP port is not open here.
    pub(super) async fn take(address: SocketAddr) -> Self {
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\n\r\n");
        let response = async { Wire::connect(address).await?.exchange(request.as_bytes()).await }.await;
        response.map(|response| Self::read(&String::from_utf8_lossy(&response.body))).unwrap_or_default()
    }

    /// Adds up the series of each name, whatever their labels; series of the probes themselves are left out.
    fn read(page: &str) -> Self {
        let mut reading = Self::default();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let foreign = name.starts_with(metric::HTTP_REQUEST_DURATION) && !labels.contains("/webhooks/");
            if let (Ok(value), false) = (value.parse::<f64>(), foreign || name.ends_with("_bucket")) {
                *reading.sums.entry(name.to_owned()).or_default() += value;
            }
            reading.inbound_partitions +=
                u16::from(name == metric::PARTITION_OWNED && labels.contains("stream=\"in\"") && value == "1");
        }
        reading
    }

    pub(super) fn turns_in_flight(&self) -> f64 {
        self.get(metric::TURNS_IN_FLIGHT)
    }

    /// The stages between this reading and a later one.
    pub(super) fn until(&self, later: &Self) -> Vec<Stage> {
        let of_stage = |(name, stage): &(&str, &'static str)| {
            let grown = |suffix: &str| {
                let series = format!("{name}_{suffix}");
                later.get(&series) - self.get(&series)
            };
            let (sum, count) = (grown("sum"), grown("count"));
            (count > 0.0).then(|| Stage { stage, count, mean_ms: sum / count * 1_000.0 })
        };
        STAGES.iter().filter_map(of_stage).collect()
    }

    fn get(&self, series: &str) -> f64 {
        self.sums.get(series).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_what_grew_between_two_readings() {
        let page = |sum: f64, count: u32| {
            format!(
                "# HELP turnwise_commit_duration_seconds Seconds.\n\
                 turnwise_commit_duration_seconds_bucket{{le=\"0.001\"}} 9\n\
                 turnwise_commit_duration_seconds_sum {sum}\nturnwise_commit_duration_seconds_count {count}\n\
                 http_server_request_duration_seconds_sum{{route=\"/metrics\",status=\"200\"}} 5\n\
                 turnwise_turns_in_flight 3\n\
                 turnwise_partition_owned{{stream=\"in\",partition=\"0\"}} 1\n\
                 turnwise_partition_owned{{stream=\"out\",partition=\"0\"}} 1\n"
            )
        };
        let (before, after) = (Reading::read(&page(1.0, 10)), Reading::read(&page(1.5, 60)));
        let stages = before.until(&after);
        assert_eq!(stages, [Stage { stage: "commit", count: 50.0, mean_ms: 10.0 }]);
        assert!((after.turns_in_flight() - 3.0).abs() < f64::EPSILON);
        assert_eq!(after.inbound_partitions, 1);
    }
}
