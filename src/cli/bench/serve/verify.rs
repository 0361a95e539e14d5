//! Whether the items of an answer are in the catalog, and within the bounds of the request.

use std::collections::HashSet;

use anyhow::{Context, bail};
use serde_json::{Map, Value};
use sidereal::catalog::{Catalog, Filter, FilterLimits, Item};

use super::answer::SeenItem;
use super::kinds::Kind;

/// Bounds of a request on the items of its answer.
#[derive(Debug, Default)]
pub struct Bounds {
    /// Whether the answer is a list.
    list: bool,
    /// Most items of a list.
    n: Option<usize>,
    types: Option<Vec<String>>,
    exclude: HashSet<String>,
    allow: Option<HashSet<String>>,
    repeats: bool,
    filter: Option<Filter>,
}

/// Whether a filter must be readable here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filters {
    /// Items are looked up: a filter that cannot be evaluated here is an error.
    Evaluate,
    /// They are not.
    Ignore,
}

impl Bounds {
    /// Most items that the answer lists; `None` if it is text.
    pub fn n(&self) -> Option<usize> {
        self.n
    }

    /// Reads the bounds off a body; `default_n` is what a list has without `n`.
    pub fn of(
        body: &Map<String, Value>,
        kind: Kind,
        default_n: u64,
        filters: Filters,
    ) -> anyhow::Result<Bounds> {
        let given = |name: &str| body.get(name).filter(|value| !value.is_null());
        let texts = |name: &str| -> anyhow::Result<Option<Vec<String>>> {
            let read = |value: &Value| serde_json::from_value(value.clone());
            given(name)
                .map(read)
                .transpose()
                .with_context(|| format!("{name}: a list of strings is expected"))
        };
        let mut types = texts("item_types")?;
        let mut n = given("n").and_then(Value::as_u64).unwrap_or(default_n);
        if let Some(quotas) = given("quotas").and_then(Value::as_array) {
            n = quotas.iter().filter_map(|quota| quota.get("n")?.as_u64()).sum();
            let name = |quota: &Value| quota.get("type")?.as_str().map(str::to_owned);
            types = Some(quotas.iter().filter_map(name).collect());
        }
        let filter = match given("filter") {
            Some(filter) if filters == Filters::Evaluate => {
                let parsed = Filter::parse(filter, &FilterLimits::default());
                Some(parsed.context("items are verified against the filter, so it must be written out")?)
            }
            _ => None,
        };
        Ok(Bounds {
            list: kind.is_list(),
            n: kind.is_list().then_some(n as usize),
            types,
            exclude: texts("exclude")?.unwrap_or_default().into_iter().collect(),
            allow: texts("allow")?.map(|ids| ids.into_iter().collect()),
            repeats: given("allow_repeats").and_then(Value::as_bool).unwrap_or(false),
            filter,
        })
    }

    /// What is wrong with an item by the request alone.
    fn fault(&self, item: &SeenItem) -> Option<String> {
        if self.exclude.contains(&item.id) {
            return Some("is excluded by the request".to_owned());
        }
        if self.allow.as_ref().is_some_and(|allow| !allow.contains(&item.id)) {
            return Some("is not among those that the request allows".to_owned());
        }
        let item_type = item.item_type.as_ref()?;
        let wrong = self.types.as_ref().is_some_and(|types| !types.contains(item_type));
        wrong.then(|| format!("is of type {item_type}, which the request does not ask for"))
    }
}

/// Catalogs to look items up in.
#[derive(Debug, Default)]
pub struct Verifier {
    catalogs: Vec<Catalog>,
}

impl Verifier {
    /// Looks items up in these catalogs; without any, answers are held against their requests alone.
    pub fn new(catalogs: Vec<Catalog>) -> Verifier {
        Verifier { catalogs }
    }

    /// The catalogs.
    pub fn catalogs(&self) -> &[Catalog] {
        &self.catalogs
    }

    /// Whether filters must be readable.
    pub fn filters(&self) -> Filters {
        if self.catalogs.is_empty() { Filters::Ignore } else { Filters::Evaluate }
    }

    /// Says of each item that should not have been named why: at most one sentence per item.
    ///
    /// An answer that names its snapshot is held against the catalog of that name, if it is here; else its items must be in one of them.
    pub fn check(&self, bounds: &Bounds, snapshot: Option<&str>, items: &[SeenItem]) -> Vec<String> {
        let named = snapshot.and_then(|name| {
            let base = name.split('+').next();
            self.catalogs.iter().position(|catalog| Some(catalog.snapshot()) == base)
        });
        let catalogs = match named {
            Some(at) => &self.catalogs[at..=at],
            None => &self.catalogs[..],
        };
        let mut faults = Vec::new();
        let mut seen: HashSet<(u32, &str)> = HashSet::new();
        for (place, item) in items.iter().enumerate() {
            // A list is one answer, whether it comes as one choice or as many.
            let choice = if bounds.list { 0 } else { item.choice };
            let repeated = !seen.insert((choice, &item.id)) && !bounds.repeats;
            let fault = match bounds.n {
                Some(n) if place >= n => Some(format!("is number {} of a list of {n}", place + 1)),
                _ if repeated => Some("is named twice".to_owned()),
                _ => bounds.fault(item).or_else(|| misplaced(catalogs, bounds, item)),
            };
            if let Some(fault) = fault {
                faults.push(format!("item {:?} {fault}", item.id));
            }
        }
        faults
    }
}

/// What is wrong with an item by every one of the catalogs.
fn misplaced(catalogs: &[Catalog], bounds: &Bounds, item: &SeenItem) -> Option<String> {
    let mut fault = None;
    for catalog in catalogs {
        let Some((item_type, rank)) = catalog.find(&item.id) else { continue };
        let known = catalog.item(item_type, rank);
        fault = Some(differs(catalog, known, bounds, item)?);
    }
    match fault {
        None if !catalogs.is_empty() => Some("is not in the catalog".to_owned()),
        fault => fault,
    }
}

fn differs(catalog: &Catalog, known: Item<'_>, bounds: &Bounds, item: &SeenItem) -> Option<String> {
    let name = &catalog.types()[known.item_type().index()];
    if item.item_type.as_ref().is_some_and(|said| said != name) {
        return Some(format!("is of type {name}, not {:?}", item.item_type.as_deref().unwrap_or_default()));
    }
    if bounds.types.as_ref().is_some_and(|types| !types.contains(name)) {
        return Some(format!("is of type {name}, which the request does not ask for"));
    }
    if let Some(sid) = &item.sid
        && *sid != known.codes()
    {
        return Some(format!("has the codes {:?}, not {sid:?}", known.codes()));
    }
    let filtered = bounds.filter.as_ref().is_some_and(|filter| !filter.matches(known));
    filtered.then(|| "does not pass the filter".to_owned())
}

/// Opens a snapshot, or reads a source with the types of a layout.
pub fn open(path: &std::path::Path) -> anyhow::Result<Catalog> {
    use sidereal::catalog::source::{Mapping, Sources};
    if Catalog::is_snapshot(path) {
        return Ok(Catalog::load(path, &mut |_, _| {})?);
    }
    let sources = Sources::new().file(path, Mapping::default());
    let beside = path.with_file_name("sid_layout.json");
    let types = match beside.exists() {
        true => sidereal::catalog::LayoutSpec::read(&beside)?.types,
        false => sources.infer_types(&mut |_, _| {})?,
    };
    let (catalog, _) = sources.read(&types, &mut |_, _| {})?;
    if catalog.is_empty() {
        bail!("{}: no items", path.display());
    }
    Ok(catalog)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sidereal::catalog::{CatalogBuilder, synthetic};

    use super::*;

    /// The catalog of the demonstration, and its items.
    fn catalog() -> Catalog {
        let mut builder = CatalogBuilder::new(&synthetic::tiny_layout().types);
        synthetic::tiny_records().into_iter().try_for_each(|record| builder.push(record)).unwrap();
        builder.build().unwrap()
    }

    fn seen(index: usize) -> SeenItem {
        let record = &synthetic::tiny_records()[index];
        SeenItem {
            id: record.id.clone(),
            item_type: Some(record.item_type.clone()),
            sid: Some(record.sid.clone()),
            choice: 0,
        }
    }

    fn bounds(body: Value, kind: Kind) -> Bounds {
        Bounds::of(body.as_object().unwrap(), kind, 10, Filters::Evaluate).unwrap()
    }

    #[track_caller]
    fn fault(body: Value, kind: Kind, items: &[SeenItem], word: &str) {
        let verifier = Verifier::new(vec![catalog()]);
        let faults = verifier.check(&bounds(body, kind), None, items);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains(word), "{faults:?}");
    }

    #[test]
    fn sound_answers_have_no_faults() {
        let verifier = Verifier::new(vec![catalog()]);
        let items: Vec<SeenItem> = (0..10).map(seen).collect();
        let none: Vec<String> = vec![];
        assert_eq!(verifier.check(&bounds(json!({}), Kind::Search), None, &items), none);
        let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
        let types: Vec<_> = items.iter().filter_map(|item| item.item_type.clone()).collect();
        let body = json!({"n": 10, "allow": ids, "item_types": types, "exclude": ["x"], "filter": null});
        assert_eq!(verifier.check(&bounds(body, Kind::Recommend), None, &items), none);
        let repeated = [seen(1), seen(1)];
        assert_eq!(
            verifier.check(&bounds(json!({"allow_repeats": true}), Kind::Mixed), None, &repeated),
            none
        );
        let choices = [seen(1), SeenItem { choice: 1, ..seen(1) }];
        assert_eq!(verifier.check(&bounds(json!({}), Kind::Mixed), None, &choices), none);
        // Without a catalog an unknown item is not a fault.
        let unknown = [SeenItem { id: "nowhere".to_owned(), ..seen(1) }];
        assert_eq!(Verifier::default().check(&bounds(json!({}), Kind::Search), None, &unknown), none);
    }

    #[test]
    fn each_fault_is_found() {
        let first = seen(0);
        let other =
            synthetic::tiny_records().into_iter().find(|r| Some(&r.item_type) != first.item_type.as_ref());
        let other = other.unwrap().item_type;
        let unknown = SeenItem { id: "nowhere".to_owned(), ..seen(0) };
        fault(json!({}), Kind::Search, &[unknown], "not in the catalog");
        fault(json!({"n": 2}), Kind::Search, &[seen(0), seen(1), seen(2)], "number 3");
        fault(json!({}), Kind::Search, &[seen(0), SeenItem { choice: 1, ..seen(0) }], "twice");
        fault(json!({}), Kind::Mixed, &[seen(0), seen(0)], "twice");
        fault(json!({"exclude": [first.id]}), Kind::Search, &[seen(0)], "excluded");
        fault(json!({"allow": [seen(1).id]}), Kind::Search, &[seen(0)], "allows");
        fault(json!({"item_types": [other]}), Kind::Search, &[seen(0)], "does not ask for");
        fault(
            json!({"item_types": [other]}),
            Kind::Mixed,
            &[SeenItem { item_type: None, ..seen(0) }],
            "does not ask for",
        );
        fault(json!({"quotas": [{"type": other, "n": 3}]}), Kind::Search, &[seen(0)], "does not ask for");
        fault(json!({}), Kind::Search, &[SeenItem { item_type: Some(other), ..seen(0) }], "is of type");
        let mut sid = first.sid.unwrap();
        sid[0] ^= 1;
        fault(json!({}), Kind::Search, &[SeenItem { sid: Some(sid), ..seen(0) }], "codes");
        fault(json!({"filter": {"any": []}}), Kind::Search, &[seen(0)], "filter");
    }

    #[test]
    fn an_answer_is_held_against_the_snapshot_it_names() {
        let records = synthetic::tiny_records();
        let mut builder = CatalogBuilder::new(&synthetic::tiny_layout().types);
        records[1..].iter().try_for_each(|record| builder.push(record.clone())).unwrap();
        let (whole, part) = (catalog(), builder.build().unwrap());
        let (of_whole, of_part) = (whole.snapshot().to_owned(), format!("{}+3", part.snapshot()));
        let verifier = Verifier::new(vec![part, whole]);
        let bounds = bounds(json!({}), Kind::Search);
        let faults = |snapshot: &str| verifier.check(&bounds, Some(snapshot), &[seen(0)]).len();
        assert_eq!((faults(&of_whole), faults(&of_part), faults("another")), (0, 1, 0));
    }

    #[test]
    fn bounds_that_cannot_be_read_are_errors() {
        let of = |body: Value, filters| Bounds::of(body.as_object().unwrap(), Kind::Search, 10, filters);
        assert!(of(json!({"item_types": "book"}), Filters::Ignore).is_err());
        assert!(of(json!({"filter": {"named": "kids"}}), Filters::Evaluate).is_err());
        assert!(of(json!({"filter": {"named": "kids"}}), Filters::Ignore).is_ok());
    }
}
