//! Every refusal names the thing and the rule.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::time::Duration;

use warpmail::{
    Builder, Device, Error, HandlerImage, HostStep, MailboxOptions, Mode, ModuleOptions, Rule, SpinBudget, State, Tap,
    builtin, direct_mailbox,
};

fn refused<T: std::fmt::Debug>(result: Result<T, Error>, words: &[&str]) {
    let error = result.expect_err("must be refused");
    assert!(matches!(error, Error::Refused { .. } | Error::State(_)), "{error:?}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

fn graph() -> Builder {
    Builder::new(Device::twin())
}

#[test]
fn mailbox_shapes() {
    let device = Device::twin();
    for stride in [0, 32, 63, 65, 100, 4097, 4160, 1 << 20] {
        refused(direct_mailbox(&device, MailboxOptions { stride, slots: 2 }), &["stride", "multiple of 64"]);
    }
    for slots in [0, 3, 6, 100, 1 << 25] {
        refused(direct_mailbox(&device, MailboxOptions { stride: 64, slots }), &["slots", "power of two"]);
    }
}

#[test]
fn budgets() {
    let budget = |budget: SpinBudget| graph().budget(budget).map(|_| ());
    let (usual, ms) = (SpinBudget::default, Duration::from_millis);
    refused(budget(SpinBudget { residency: Duration::ZERO, ..usual() }), &["residency", "100 µs"]);
    refused(budget(SpinBudget { residency: Duration::from_secs(2), ..usual() }), &["residency", "1 s"]);
    refused(budget(SpinBudget { max_wait: Duration::from_secs(3600), ..usual() }), &["max_wait", "1 s"]);
    refused(budget(SpinBudget { servers: 10, ..usual() }), &["10 servers", "9"]);
    for sms in [0, 2, 132, u32::MAX] {
        refused(budget(SpinBudget { sms, ..usual() }), &[&format!("sms {sms}"), "must be 1", "one block"]);
    }
    budget(SpinBudget { sms: 1, ..usual() }).unwrap();
    refused(budget(SpinBudget { idle_spin: Some(Duration::ZERO), ..usual() }), &["idle_spin", "1 µs"]);
    refused(budget(SpinBudget { idle_spin: Some(ms(3)), ..usual() }), &["idle_spin 3ms", "residency", "2ms"]);
    refused(budget(SpinBudget { idle_spin: Some(ms(2)), ..usual() }), &["idle_spin 2ms", "less than the residency"]);
    for sm_share in [0.0, -1.0, 1.5, f64::NAN, f64::INFINITY] {
        refused(budget(SpinBudget { sm_share, idle_spin: Some(ms(1)), ..usual() }), &["sm_share", "above 0"]);
    }
    let never = SpinBudget { idle_spin: None, ..usual() };
    refused(budget(SpinBudget { sm_share: 0.5, ..never.clone() }), &["sm_share 0.5", "set idle_spin"]);
    refused(budget(SpinBudget { adaptive: true, ..never }), &["adaptive", "idle_spin"]);
    // Less than what the pacer's launches may take in each max_wait.
    refused(budget(SpinBudget { sm_share: 0.001, ..usual() }), &["sm_share 0.001", "max_wait 10ms", "larger share"]);
    refused(budget(SpinBudget { sm_share: 0.009, max_wait: ms(2), ..usual() }), &["sm_share 0.009", "max_wait 2ms"]);
    budget(SpinBudget { sm_share: 0.01, max_wait: ms(2), adaptive: true, ..usual() }).unwrap();
    budget(SpinBudget { servers: 9, idle_spin: Some(ms(1)), sm_share: 0.01, max_wait: ms(1000), ..usual() }).unwrap();
}

/// The journal's role needs a warp of the arbiter's block.
#[test]
fn servers_beside_a_journal() {
    for (servers, tap, mode) in [
        (9, Tap::Off, Mode::Device),
        (8, Tap::Block, Mode::Device),
        (9, Tap::Block, Mode::Cpu),
        (9, Tap::Drop, Mode::Device),
    ] {
        let mut graph = graph();
        graph.mode(mode).budget(SpinBudget { servers, ..SpinBudget::default() }).unwrap();
        let host = graph.host("host").unwrap();
        let sink = graph.resident("sink", builtin::DISCARD).unwrap();
        let mailbox = graph.mailbox(host, sink, MailboxOptions::default()).unwrap();
        graph.tap(mailbox, tap).unwrap();
        let built = graph.build(HandlerImage::builtin());
        if tap == Tap::Drop {
            refused(built, &["9 servers", "at most 8", "journalled"]);
        } else {
            built.unwrap();
        }
    }
}

/// They are an option of a GPU's arbiter, and taken everywhere.
#[test]
fn blocks_for_a_journal() {
    for blocks in [4, u32::MAX] {
        refused(graph().journal_blocks(blocks).map(|_| ()), &[&format!("{blocks} blocks"), "at most 3"]);
    }
    for (blocks, tap, mode) in [(3, Tap::Block, Mode::Device), (2, Tap::Drop, Mode::Cpu), (1, Tap::Off, Mode::Device)] {
        let mut graph = graph();
        graph.mode(mode).journal_blocks(blocks).unwrap();
        let host = graph.host("host").unwrap();
        let sink = graph.resident("sink", builtin::DISCARD).unwrap();
        let mailbox = graph.mailbox(host, sink, MailboxOptions { stride: 4096, slots: 16 }).unwrap();
        graph.tap(mailbox, tap).unwrap();
        graph.build(HandlerImage::builtin()).unwrap();
    }
}

#[test]
fn break_even_is_found_at_the_build() {
    let found = |budget: SpinBudget| {
        let mut graph = graph();
        graph.budget(budget).unwrap();
        let host = graph.host("host").unwrap();
        let relay = graph.resident("relay", builtin::RELAY).unwrap();
        graph.mailbox(host, relay, MailboxOptions::default()).unwrap();
        graph.build(HandlerImage::builtin()).unwrap().budget().idle_spin
    };
    let usual = SpinBudget::default;
    assert_eq!(found(usual()), Some(Duration::from_micros(500)));
    // A launch that stays no longer than that would never park.
    assert_eq!(found(SpinBudget { residency: Duration::from_micros(100), ..usual() }), Some(Duration::from_micros(50)));
    assert_eq!(found(SpinBudget { idle_spin: None, ..usual() }), None);
    assert_eq!(
        found(SpinBudget { idle_spin: Some(Duration::from_micros(7)), ..usual() }),
        Some(Duration::from_micros(7))
    );
}

#[test]
fn budgets_as_toml() {
    let read = |text: &str| SpinBudget::from_toml(text);
    assert_eq!(read("").unwrap(), SpinBudget::default());
    let some = SpinBudget {
        idle_spin: Some(Duration::from_micros(20)),
        adaptive: true,
        sm_share: 0.05,
        servers: 3,
        ..Default::default()
    };
    assert_eq!(read("idle_spin = \"20us\"\nadaptive = true\nsm_share = 0.05\nservers = 3").unwrap(), some);
    for budget in [SpinBudget::default(), some] {
        assert_eq!(read(&budget.to_toml().unwrap()).unwrap(), budget);
    }
    refused(read("idle_spin = \"often\""), &["idle_spin", "never"]);
    refused(read("residency = 5"), &["residency", "string"]);
    refused(read("sms = 2"), &["sms 2", "must be 1"]);
    assert_eq!(read("sms = 1").unwrap(), SpinBudget::default());
    refused(read("idle_spn = \"20us\""), &["idle_spn", "idle_spin"]);
    refused(read("residency = \"5s\""), &["residency 5s", "1 s"]);
    refused(read("idle_spin = \"never\"\nsm_share = 0.5"), &["sm_share 0.5", "set idle_spin"]);
    assert_eq!(read("idle_spin = \"break-even\"").unwrap(), SpinBudget::default());
    assert_eq!(read("idle_spin = \"never\"").unwrap().idle_spin, None);
    refused(read("idle_spin = "), &["idle_spin"]);
}

#[test]
fn modules() {
    let mut g = graph();
    g.host("a").unwrap();
    refused(g.host("a"), &["module a", "taken"]);
    refused(g.resident("", builtin::RELAY), &["without a name"]);
    refused(g.resident("b", ModuleOptions { batch: 0, ..Default::default() }), &["module b", "at least one step"]);
}

#[test]
fn graphs() {
    refused(graph().build(HandlerImage::builtin()), &["at least one mailbox"]);

    let mut g = graph();
    let (host, lonely) = (g.host("host").unwrap(), g.resident("lonely", builtin::RELAY).unwrap());
    g.mailbox(lonely, host, MailboxOptions::default()).unwrap();
    refused(g.build(HandlerImage::builtin()), &["module lonely", "needs an input"]);

    let mut g = graph();
    let (host, greedy) = (g.host("host").unwrap(), ModuleOptions { out_records: 5, ..Default::default() });
    let greedy = g.resident("greedy", greedy).unwrap();
    g.mailbox(host, greedy, MailboxOptions::default()).unwrap();
    g.mailbox(greedy, host, MailboxOptions::slots(4)).unwrap();
    refused(g.build(HandlerImage::builtin()), &["module greedy", "5 records", "4 slots", "greedy->host"]);
}

#[test]
fn ids_of_another_graph() {
    let mut other = graph();
    let ids: Vec<_> = (0..3).map(|i| other.host(&format!("h{i}")).unwrap()).collect();
    let mut g = graph();
    let host = g.host("host").unwrap();
    refused(g.mailbox(host, ids[2], MailboxOptions::default()), &["another graph"]);
}

#[test]
fn too_many_ends() {
    let mut g = graph();
    let (host, busy) = (g.host("host").unwrap(), g.resident("busy", builtin::RELAY).unwrap());
    for _ in 0..8 {
        g.mailbox(host, busy, MailboxOptions::default()).unwrap();
    }
    refused(g.mailbox(host, busy, MailboxOptions::default()), &["module busy", "8 inputs"]);
}

#[test]
fn one_producer_and_one_consumer() {
    let mut g = graph();
    let (host, relay) = (g.host("host").unwrap(), g.resident("relay", builtin::RELAY).unwrap());
    let there = g.mailbox(host, relay, MailboxOptions::default()).unwrap();
    let back = g.mailbox(relay, host, MailboxOptions::default()).unwrap();
    let mut runtime = g.build(HandlerImage::builtin()).unwrap();
    let _sender = runtime.sender(there).unwrap();
    refused(runtime.sender(there), &["host->relay", "exactly one"]);
    refused(runtime.receiver(there), &["host->relay", "consumer is not a host module"]);
    refused(runtime.sender(back), &["relay->host", "producer is not a host module"]);
    refused(runtime.spawn(host, Rule::Any, |_| Ok(HostStep::Done)), &["host->relay"]);
    refused(runtime.spawn(relay, Rule::Any, |_| Ok(HostStep::Done)), &["module relay", "only a host module"]);
}

#[test]
fn state_and_states() {
    let mut g = graph();
    let host = g.host("host").unwrap();
    let options = ModuleOptions::handler(builtin::DISCARD).with_state(&[1u64; 4]);
    let module = g.resident("module", options).unwrap();
    g.mailbox(host, module, MailboxOptions::default()).unwrap();
    let mut runtime = g.build(HandlerImage::builtin()).unwrap();
    let mut bytes = [0; 32];
    runtime.read_state(module, &mut bytes).unwrap();
    assert_eq!(bytes[..8], 1u64.to_ne_bytes());
    refused(runtime.write_state(module, &[0; 33]), &["module module", "32 bytes, not 33"]);
    runtime.start().unwrap();
    assert_eq!(runtime.state(), State::Running);
    refused(runtime.read_state(module, &mut bytes), &["quiesce"]);
    refused(runtime.start(), &["started before"]);
    let inside = runtime.quiesce(Duration::from_secs(10), |r| r.write_state(module, &[5; 32]).map(|()| r.state()));
    assert_eq!(inside.unwrap().unwrap(), State::Quiet);
    runtime.stop(Duration::from_secs(10)).unwrap();
    runtime.read_state(module, &mut bytes).unwrap();
    assert_eq!(bytes, [5; 32]);
    refused(runtime.quiesce(Duration::from_secs(1), |_| ()), &["Stopped"]);
}

#[test]
fn buffers() {
    let buffer = Device::twin().alloc(100).unwrap();
    assert_eq!((buffer.len(), buffer.is_empty()), (100, false));
    buffer.upload(92, &[1; 8]).unwrap();
    refused(buffer.upload(93, &[1; 8]), &["8 bytes at offset 93", "100 bytes"]);
    let mut back = [0; 8];
    refused(buffer.download(usize::MAX, &mut back), &["outside"]);
    buffer.download(92, &mut back).unwrap();
    assert_eq!(back, [1; 8]);
}

#[test]
fn probe_gives_reasons() {
    let probe = warpmail::probe();
    assert!(probe.why_not_cuda(9999).is_some());
    if let Some(reason) = probe.why_not_cuda(0) {
        let error = Device::cuda(0).unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        assert!(error.to_string().contains(&reason), "{error}");
    }
}
