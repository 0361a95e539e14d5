//! Who is admitted next: tenants in turns, each tenant's requests in the order in which they came.
//!
//! Start-time fair queueing. A tenant has a virtual time: the work admitted in its name. The tenant whose time is least behind goes
//! next, and its time moves on by the cost of what was admitted; a tenant that has had nothing waiting begins at the time of the
//! admission before, so that nobody saves up. While two tenants both wait, what is admitted of theirs differs by no more than one
//! request of each, however many either has sent. One tenant alone waits in plain order.
//!
//! What leaves the queue without having been admitted costs its tenant nothing.

use std::collections::{BTreeSet, HashMap, VecDeque};

/// Tenants remembered beyond those that wait, before those without a debt are forgotten.
const SPARE_TENANTS: usize = 16;

/// What waits.
pub(super) struct Queue<T> {
    /// What was admitted and gave way again: before everything else.
    returned: VecDeque<T>,
    tenants: HashMap<u64, Tenant<T>>,
    /// (virtual time, arrival of its first request, tenant) of those that wait.
    heads: BTreeSet<(u64, u64, u64)>,
    /// Virtual time at which the last request was admitted.
    time: u64,
    arrivals: u64,
    len: usize,
}

struct Tenant<T> {
    time: u64,
    waiting: VecDeque<Entry<T>>,
}

struct Entry<T> {
    arrival: u64,
    cost: u64,
    value: T,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue {
            returned: VecDeque::new(),
            tenants: HashMap::new(),
            heads: BTreeSet::new(),
            time: 0,
            arrivals: 0,
            len: 0,
        }
    }
}

impl<T> Queue<T> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a request of a tenant; a cost of 0 counts as 1.
    pub fn push(&mut self, tenant: u64, cost: u64, value: T) {
        let arrival = self.arrivals;
        self.arrivals += 1;
        self.len += 1;
        let own = self.tenants.entry(tenant).or_insert_with(|| Tenant { time: 0, waiting: VecDeque::new() });
        if own.waiting.is_empty() {
            own.time = own.time.max(self.time);
            self.heads.insert((own.time, arrival, tenant));
        }
        own.waiting.push_back(Entry { arrival, cost: cost.max(1), value });
    }

    /// Puts what was taken back, before everything else.
    pub fn push_front(&mut self, value: T) {
        self.len += 1;
        self.returned.push_front(value);
    }

    /// What goes next.
    pub fn front(&self) -> Option<&T> {
        if let Some(value) = self.returned.front() {
            return Some(value);
        }
        let (_, _, tenant) = self.heads.first()?;
        Some(&self.tenants.get(tenant)?.waiting.front()?.value)
    }

    /// Takes what goes next.
    pub fn pop_front(&mut self) -> Option<T> {
        if let Some(value) = self.returned.pop_front() {
            self.len -= 1;
            return Some(value);
        }
        let (time, _, tenant) = self.heads.pop_first()?;
        let own = self.tenants.get_mut(&tenant)?;
        let entry = own.waiting.pop_front()?;
        self.len -= 1;
        self.time = time;
        own.time = time.saturating_add(entry.cost);
        if let Some(next) = own.waiting.front() {
            self.heads.insert((own.time, next.arrival, tenant));
        }
        self.forget_tenants();
        Some(entry.value)
    }

    /// Drops what `keep` does not want.
    pub fn retain(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        self.returned.retain_mut(&mut keep);
        let mut len = self.returned.len();
        for (id, tenant) in &mut self.tenants {
            let first = tenant.waiting.front().map(|entry| entry.arrival);
            tenant.waiting.retain_mut(|entry| keep(&mut entry.value));
            len += tenant.waiting.len();
            let now = tenant.waiting.front().map(|entry| entry.arrival);
            if now != first {
                self.heads.extend(now.map(|arrival| (tenant.time, arrival, *id)));
                if let Some(arrival) = first {
                    self.heads.remove(&(tenant.time, arrival, *id));
                }
            }
        }
        self.len = len;
        self.forget_tenants();
    }

    /// All that wait, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let waiting = self.tenants.values().flat_map(|tenant| &tenant.waiting);
        self.returned.iter().chain(waiting.map(|entry| &entry.value))
    }

    /// Forgets tenants that would begin anew at the present time anyway, and all of them when nobody waits.
    fn forget_tenants(&mut self) {
        if self.heads.is_empty() {
            self.tenants.clear();
            self.time = 0;
        } else if self.tenants.len() > 2 * self.heads.len() + SPARE_TENANTS {
            self.tenants.retain(|_, tenant| !tenant.waiting.is_empty() || tenant.time > self.time);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A request: its tenant, its place among the tenant's requests, its cost.
    type Request = (u64, u64, u64);

    #[derive(Clone, Debug)]
    enum Step {
        Push {
            tenant: u64,
            cost: u64,
        },
        Pop,
        /// Takes the next and puts it back.
        Return,
        /// Drops the requests whose place leaves this rest by 7.
        Drop(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            5 => (0..4u64, 0..50u64).prop_map(|(tenant, cost)| Step::Push { tenant, cost }),
            4 => Just(Step::Pop),
            1 => Just(Step::Return),
            1 => (0..7u64).prop_map(Step::Drop),
        ];
        proptest::collection::vec(step, 0..300)
    }

    #[derive(Default)]
    struct Model {
        waiting: BTreeMap<u64, VecDeque<Request>>,
        sent: BTreeMap<u64, u64>,
        /// Work admitted of two tenants since both began to wait.
        since: BTreeMap<(u64, u64), (u64, u64)>,
    }

    impl Model {
        fn pop(&mut self, popped: Option<Request>) -> Result<(), TestCaseError> {
            let Some((tenant, place, cost)) = popped else {
                prop_assert!(
                    self.waiting.values().all(VecDeque::is_empty),
                    "the queue says that it is empty"
                );
                return Ok(());
            };
            let first = self.waiting.get_mut(&tenant).and_then(VecDeque::pop_front);
            prop_assert_eq!(first, Some((tenant, place, cost)), "the order within a tenant");
            for (&(a, b), (of_a, of_b)) in &mut self.since {
                *of_a += if a == tenant { cost.max(1) } else { 0 };
                *of_b += if b == tenant { cost.max(1) } else { 0 };
                // No cost is above 50.
                prop_assert!(of_a.abs_diff(*of_b) <= 100, "{a} had {of_a} and {b} had {of_b}");
            }
            self.settle();
            Ok(())
        }

        /// Begins to count for pairs that both wait now, and stops for those that do not any more.
        fn settle(&mut self) {
            let waits = |tenant: u64| self.waiting.get(&tenant).is_some_and(|own| !own.is_empty());
            for (a, b) in (0..4).flat_map(|a| (0..a).map(move |b| (a, b))) {
                if waits(a) && waits(b) {
                    self.since.entry((a, b)).or_default();
                } else {
                    self.since.remove(&(a, b));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn shares_are_equal_and_order_is_kept(steps in steps()) {
            let mut queue = Queue::default();
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Push { tenant, cost } => {
                        let place = model.sent.entry(tenant).or_default();
                        queue.push(tenant, cost, (tenant, *place, cost));
                        model.waiting.entry(tenant).or_default().push_back((tenant, *place, cost));
                        *place += 1;
                        model.settle();
                    }
                    Step::Pop => {
                        let front = queue.front().copied();
                        let popped = queue.pop_front();
                        prop_assert_eq!(front, popped);
                        model.pop(popped)?;
                    }
                    Step::Return => {
                        let Some(value) = queue.pop_front() else { continue };
                        queue.push_front(value);
                        prop_assert_eq!(queue.front(), Some(&value));
                        prop_assert_eq!(queue.pop_front(), Some(value));
                        model.pop(Some(value))?;
                    }
                    Step::Drop(rest) => {
                        queue.retain(|(_, place, _)| *place % 7 != rest);
                        model.waiting.values_mut().for_each(|own| own.retain(|(_, p, _)| p % 7 != rest));
                        model.settle();
                    }
                }
                let waiting: usize = model.waiting.values().map(VecDeque::len).sum();
                prop_assert_eq!((queue.len(), queue.iter().count()), (waiting, waiting));
                prop_assert_eq!(queue.is_empty(), waiting == 0);
            }
            while let Some(popped) = queue.pop_front() {
                model.pop(Some(popped))?;
            }
            model.pop(None)?;
        }
    }

    #[test]
    fn one_tenant_waits_in_plain_order() {
        let mut queue = Queue::default();
        (0..100u64).for_each(|i| queue.push(7, i * 37 % 11, i));
        let order: Vec<u64> = std::iter::from_fn(|| queue.pop_front()).collect();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_flood_does_not_delay_another_tenant() {
        let mut queue = Queue::default();
        (0..5000u64).for_each(|_| queue.push(1, 10, 1));
        for _ in 0..20 {
            queue.pop_front();
        }
        (0..100u64).for_each(|_| queue.push(2, 10, 2));
        let order: Vec<u64> = std::iter::from_fn(|| queue.pop_front()).collect();
        let mut places = order.iter().enumerate().filter(|(_, tenant)| **tenant == 2).map(|(place, _)| place);
        assert!(places.all(|place| place <= 2 * 100), "{:?}", &order[..220]);
    }

    #[test]
    fn what_was_cancelled_costs_nothing() {
        let mut queue = Queue::default();
        queue.push(1, 10, (1, true));
        (0..1000).for_each(|_| queue.push(2, 1_000_000, (2, false)));
        queue.push(1, 10, (1, true));
        queue.retain(|(_, keep)| *keep);
        queue.push(2, 10, (2, true));
        let order: Vec<i32> = std::iter::from_fn(|| queue.pop_front()).map(|(tenant, _)| tenant).collect();
        assert_eq!(order, [1, 2, 1]);
    }

    #[test]
    fn tenants_that_are_gone_are_forgotten() {
        let mut queue = Queue::default();
        queue.push(0, 1, ());
        queue.push(0, 1, ());
        for tenant in 1..10_000 {
            queue.push(tenant, 1, ());
            queue.pop_front();
            queue.pop_front();
            queue.push(0, 1, ());
        }
        assert!(queue.tenants.len() < 100, "{} tenants", queue.tenants.len());
    }
}
