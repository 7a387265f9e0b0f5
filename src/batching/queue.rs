//! The waiting line of the encoder as plain data: who goes next, and who no longer needs to.
//!
//! Entries leave in the order of their deadlines, in batches that fit a budget of tokens. It refuses to know clocks (the time is an
//! argument), tensors and threads; see `batcher` for those.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An entry is never overtaken by one that came this much later, whatever their deadlines: one without a deadline, or with a distant
/// one, counts as due this long after its arrival. Longer than a healthy queue ever is, so that real deadlines decide there.
const MAX_PATIENCE: Duration = Duration::from_secs(2);

/// One text that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T> {
    /// What the caller wants back with the answer; the queue does not look into it.
    pub payload: T,
    pub n_tokens: usize,
    /// After this moment nobody wants the answer.
    pub deadline: Option<Instant>,
    pub arrived_at: Instant,
}

impl<T> Entry<T> {
    /// By when its turn comes at the latest, in a healthy queue.
    fn due(&self) -> Instant {
        let patience_ends = self.arrived_at + MAX_PATIENCE;
        self.deadline.map_or(patience_ends, |deadline| deadline.min(patience_ends))
    }

    fn has_expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// What leaves the queue at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<T> {
    /// To encode, most urgent first.
    pub entries: Vec<Entry<T>>,
    /// Sum over `entries`.
    pub n_tokens: usize,
    /// To answer without encoding: their deadline has passed.
    pub expired: Vec<Entry<T>>,
}

/// A bounded queue, earliest deadline first.
#[derive(Debug)]
pub struct Queue<T> {
    /// By urgency, and among equals by arrival. The second part of the key also makes it unique.
    entries: BTreeMap<(Instant, u64), Entry<T>>,
    n_pushed: u64,
    n_tokens: usize,
    max_batch_tokens: usize,
    queue_capacity: usize,
}

impl<T> Queue<T> {
    /// A queue of at most `queue_capacity` entries that gives batches of at most `max_batch_tokens`.
    pub fn new(max_batch_tokens: usize, queue_capacity: usize) -> Self {
        Self { entries: BTreeMap::new(), n_pushed: 0, n_tokens: 0, max_batch_tokens, queue_capacity }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.entries.len() >= self.queue_capacity
    }

    /// Tokens that wait.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Tokens that would leave before `entry`, were it pushed now. Linear in the number of entries.
    pub fn n_tokens_before(&self, entry: &Entry<T>) -> usize {
        self.entries.range(..(entry.due(), self.n_pushed)).map(|(_, earlier)| earlier.n_tokens).sum()
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// Hands the entry back where the queue is full.
    pub fn push(&mut self, entry: Entry<T>) -> Result<(), Entry<T>> {
        if self.is_full() {
            return Err(entry);
        }
        self.n_tokens += entry.n_tokens;
        self.entries.insert((entry.due(), self.n_pushed), entry);
        self.n_pushed += 1;
        Ok(())
    }

    /// Takes the most urgent entries that fit the budget together, and every expired entry that stands before or among them.
    ///
    /// An entry that exceeds the budget by itself makes a batch of its own. Entries that `is_abandoned` says nobody waits for are
    /// dropped on the way. Both lists are empty only where the queue holds nothing else.
    pub fn next_batch(&mut self, now: Instant, is_abandoned: impl Fn(&T) -> bool) -> Batch<T> {
        let mut batch = Batch { entries: Vec::new(), n_tokens: 0, expired: Vec::new() };
        while let Some(next) = self.entries.first_entry() {
            let entry = next.get();
            let (abandoned, expired) = (is_abandoned(&entry.payload), entry.has_expired(now));
            let fits = batch.entries.is_empty() || batch.n_tokens + entry.n_tokens <= self.max_batch_tokens;
            if !abandoned && !expired && !fits {
                break;
            }
            let entry = next.remove();
            self.n_tokens -= entry.n_tokens;
            if abandoned {
                continue;
            }
            if expired {
                batch.expired.push(entry);
            } else {
                batch.n_tokens += entry.n_tokens;
                batch.entries.push(entry);
            }
        }
        batch
    }

    /// Drops everything that waits.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.n_tokens = 0;
    }

    /// Makes room: drops the entries that nobody waits for and returns those whose deadline has passed.
    pub fn sweep(&mut self, now: Instant, is_abandoned: impl Fn(&T) -> bool) -> Vec<Entry<T>> {
        let leaving = self.entries.extract_if(.., |_, entry| is_abandoned(&entry.payload) || entry.has_expired(now));
        let leaving: Vec<Entry<T>> = leaving.map(|(_, entry)| entry).collect();
        self.n_tokens -= leaving.iter().map(|entry| entry.n_tokens).sum::<usize>();
        leaving.into_iter().filter(|entry| !is_abandoned(&entry.payload)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    static START: LazyLock<Instant> = LazyLock::new(Instant::now);

    fn at(milliseconds: u64) -> Instant {
        *START + Duration::from_millis(milliseconds)
    }

    fn entry(payload: u32, n_tokens: usize, arrived_ms: u64, deadline_ms: Option<u64>) -> Entry<u32> {
        Entry { payload, n_tokens, deadline: deadline_ms.map(at), arrived_at: at(arrived_ms) }
    }

    fn queue(max_batch_tokens: usize, entries: &[Entry<u32>]) -> Queue<u32> {
        let mut queue = Queue::new(max_batch_tokens, 1_000);
        for entry in entries {
            queue.push(entry.clone()).unwrap();
        }
        queue
    }

    fn payloads(entries: &[Entry<u32>]) -> Vec<u32> {
        entries.iter().map(|entry| entry.payload).collect()
    }

    fn nobody(_: &u32) -> bool {
        false
    }

    /// Every batch of the queue at one moment, by payload.
    fn batches(queue: &mut Queue<u32>, now: Instant) -> Vec<Vec<u32>> {
        std::iter::from_fn(|| Some(queue.next_batch(now, nobody)).filter(|batch| !batch.entries.is_empty()))
            .map(|batch| payloads(&batch.entries))
            .collect()
    }

    #[test]
    fn batches_are_the_most_urgent_entries_that_fit() {
        #[track_caller]
        fn check(max_batch_tokens: usize, entries: &[Entry<u32>], expected: &[&[u32]]) {
            assert_eq!(batches(&mut queue(max_batch_tokens, entries), at(1)), expected);
        }

        let without_deadline: Vec<_> = (0..5).map(|idx| entry(idx, 10, 0, None)).collect();
        check(30, &without_deadline, &[&[0, 1, 2], &[3, 4]]);
        check(10, &without_deadline, &[&[0], &[1], &[2], &[3], &[4]]);
        check(1_000, &[], &[]);

        let deadlines = [entry(0, 10, 0, Some(300)), entry(1, 10, 0, None), entry(2, 10, 0, Some(100)), entry(3, 10, 0, Some(300))];
        check(1_000, &deadlines, &[&[2, 0, 3, 1]]);
        check(20, &deadlines, &[&[2, 0], &[3, 1]]);

        // Larger than any batch may be: alone, and without holding up the rest.
        check(50, &[entry(0, 10, 0, None), entry(1, 400, 0, None), entry(2, 10, 0, None)], &[&[0], &[1], &[2]]);
        check(0, &[entry(0, 10, 0, None), entry(1, 0, 0, None)], &[&[0], &[1]]);
    }

    #[test]
    fn an_entry_waits_for_later_ones_only_so_long() {
        let patience = MAX_PATIENCE.as_millis() as u64;
        let hurried = entry(1, 10, patience - 500, Some(patience - 100));
        let too_late = entry(2, 10, patience + 1, Some(patience + 2));
        let mut queue = queue(10, &[entry(0, 10, 0, None), too_late, hurried, entry(3, 10, 1, Some(1_000_000))]);
        assert_eq!(batches(&mut queue, at(patience - 200)), [[1], [0], [3], [2]]);
    }

    #[test]
    fn who_is_late_or_gone_leaves_without_costing() {
        let entries = [
            entry(0, 10, 0, Some(5)),
            entry(1, 10, 0, Some(50)),
            entry(2, 10, 0, Some(6)),
            entry(3, 10, 0, None),
            entry(4, 10, 0, Some(5)),
        ];
        let gone = |payload: &u32| matches!(payload, 3 | 4);
        let mut queue = queue(10, &entries);
        let batch = queue.next_batch(at(6), gone);
        assert_eq!((payloads(&batch.entries), payloads(&batch.expired), batch.n_tokens), (vec![1], vec![0, 2], 10));
        assert!(queue.is_empty() && queue.n_tokens() == 0);
    }

    #[test]
    fn what_leaves_before_an_entry_is_what_is_due_before_it() {
        let queue = queue(100, &[entry(0, 10, 0, Some(100)), entry(1, 20, 0, Some(300)), entry(2, 40, 0, None)]);
        for (deadline_ms, expected) in [(Some(50), 0), (Some(100), 10), (Some(299), 10), (Some(300), 30), (None, 70)] {
            assert_eq!(queue.n_tokens_before(&entry(3, 1, 1, deadline_ms)), expected, "{deadline_ms:?}");
        }
    }

    #[test]
    fn a_full_queue_hands_the_entry_back_until_there_is_room() {
        let mut queue = Queue::new(100, 2);
        queue.push(entry(0, 1, 0, Some(10))).unwrap();
        queue.push(entry(1, 1, 0, None)).unwrap();
        let refused = entry(2, 1, 0, Some(1));
        assert_eq!(queue.push(refused.clone()), Err(refused.clone()));
        assert_eq!(queue.sweep(at(9), nobody), []);
        assert_eq!(payloads(&queue.sweep(at(10), nobody)), [0]);
        queue.push(refused.clone()).unwrap();
        assert_eq!(queue.sweep(at(0), |payload| *payload == 1), []);
        assert_eq!((queue.len(), queue.n_tokens()), (1, 1));
        assert_eq!(Queue::new(100, 0).push(refused.clone()), Err(refused));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { n_tokens: usize, deadline_ms: Option<u64>, is_gone: bool },
        Take,
        Sweep,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (1_usize..80, prop::option::of(0_u64..5_000), prop::bool::weighted(0.1))
                .prop_map(|(n_tokens, deadline_ms, is_gone)| Step::Push { n_tokens, deadline_ms, is_gone }),
            2 => Just(Step::Take),
            1 => Just(Step::Sweep),
            1 => (0_u64..800).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_lost_doubled_or_over_budget(steps in prop::collection::vec(step(), 0..120), budget in 1_usize..150, capacity in 1_usize..20) {
            let mut queue = Queue::new(budget, capacity);
            let (mut clock, mut waiting, mut gone) = (0_u64, HashSet::new(), HashSet::new());
            let all_steps = steps.into_iter().chain(std::iter::repeat_n(Step::Take, 130));
            for (payload, step) in (0_u32..).zip(all_steps) {
                let now = at(clock);
                let is_abandoned = |payload: &u32| gone.contains(payload);
                match step {
                    Step::Wait(milliseconds) => clock += milliseconds,
                    Step::Push { n_tokens, deadline_ms, is_gone } => {
                        let was_full = queue.len() == capacity;
                        let pushed = queue.push(entry(payload, n_tokens, clock, deadline_ms.map(|deadline| clock + deadline)));
                        prop_assert_eq!(pushed.is_err(), was_full);
                        if pushed.is_ok() {
                            waiting.insert(payload);
                            if is_gone {
                                gone.insert(payload);
                            }
                        }
                    }
                    Step::Sweep => {
                        for entry in queue.sweep(now, is_abandoned) {
                            prop_assert!(entry.has_expired(now) && waiting.remove(&entry.payload) && !gone.contains(&entry.payload));
                        }
                        waiting.retain(|payload| !gone.contains(payload));
                    }
                    Step::Take => {
                        let batch = queue.next_batch(now, is_abandoned);
                        prop_assert!(batch.n_tokens <= budget || batch.entries.len() == 1);
                        prop_assert_eq!(batch.n_tokens, batch.entries.iter().map(|entry| entry.n_tokens).sum::<usize>());
                        for entry in batch.entries.iter().chain(&batch.expired) {
                            prop_assert!(waiting.remove(&entry.payload) && !gone.contains(&entry.payload));
                        }
                        prop_assert!(batch.expired.iter().all(|entry| entry.has_expired(now)));
                        prop_assert!(!batch.entries.iter().any(|entry| entry.has_expired(now)));
                        let due = |entry: &Entry<u32>| entry.deadline.unwrap_or(at(u64::from(u32::MAX))).min(entry.arrived_at + MAX_PATIENCE);
                        prop_assert!(batch.entries.is_sorted_by_key(|entry| (due(entry), entry.payload)));
                        prop_assert!(!batch.entries.is_empty() || queue.is_empty());
                    }
                }
                prop_assert!(queue.len() <= capacity);
            }
            waiting.retain(|payload| !gone.contains(payload));
            prop_assert!(queue.is_empty() && queue.n_tokens() == 0 && waiting.is_empty());
        }
    }
}
