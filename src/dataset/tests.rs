//! The room as a whole, on the demonstration's works.

use std::collections::{HashMap, HashSet};

use super::wording::{self, Wordings, fill};
use super::*;
use crate::engine::{Output, Part};
use crate::eval::claims;

fn works() -> Works {
    Works::of(crate::demo::builder().unwrap().catalog_ref().unwrap()).unwrap()
}

fn histories(works: &Works) -> Vec<History> {
    simulate(works, &SimulationOptions { users: 360, held_out: 40, ..SimulationOptions::default() })
}

fn text(parts: &[Part]) -> String {
    let of = |part: &Part| match part {
        Part::Text { text } => text.clone(),
        _ => "[]".to_owned(),
    };
    parts.iter().map(of).collect()
}

#[test]
fn held_out_wordings_are_new_and_all_can_be_filled() {
    let work = Work {
        title: "Alien".to_owned(),
        creator: Some("Ridley Scott".to_owned()),
        year: Some(1979),
        genres: vec!["Horror".to_owned(), "Science Fiction".to_owned()],
        about: Some("A crew is hunted.".to_owned()),
        ..Work::default()
    };
    let queries = [
        &wording::BY_TITLE,
        &wording::BY_CREATOR,
        &wording::BY_GENRE_AND_DECADE,
        &wording::BY_GENRE,
        &wording::BY_DECADE,
        &wording::BY_CREATOR_AND_GENRE,
        &wording::DESCRIPTIONS,
    ];
    let instructions = Task::ALL.map(wording::instructions);
    for wordings in queries.into_iter().chain(instructions) {
        let [training, held_out]: [&[&str]; 2] = Wordings::all(wordings);
        assert!(training.len() >= 3 && !held_out.is_empty());
        for new in held_out {
            assert!(!training.contains(new), "{new}");
        }
        for wording in training.iter().chain(held_out) {
            let filled = fill(wording, &work, "film", Some("Horror")).unwrap_or_else(|| panic!("{wording}"));
            assert!(!filled.contains(['{', '}']), "{filled}");
        }
    }
    assert_eq!(fill("{creator}", &Work::default(), "film", None), None);
}

#[test]
fn articles_fit_what_follows() {
    let work = Work { genres: vec!["Adventure".to_owned(), "War".to_owned()], ..Work::default() };
    let filled = |wording| fill(wording, &work, "album", None).unwrap();
    assert_eq!(filled("A {genres} {type}."), "An adventure and war album.");
    assert_eq!(filled("like a {type} of a {genre} band"), "like an album of an adventure band");
    assert_eq!(filled("a {types}"), "an albums");
    assert_eq!(fill("Dracula {genre}", &work, "film", Some("Epic")).unwrap(), "Dracula epic");
}

#[test]
fn a_prompt_is_what_the_format_says() {
    let history = Subject::History(vec!["film:alien".to_owned(), "book:dune".to_owned()]);
    let prompt = Prompt::new(Task::Recommend, history, Some("book"));
    let Part::History { items } = &prompt.parts()[1] else { panic!("{:?}", prompt.parts()) };
    assert_eq!(items.len(), 2);
    assert_eq!(
        text(&prompt.parts()),
        "Recommend the next item.\nHistory: []\nTarget item type: book\nOutput: items"
    );
    let request = prompt.request();
    assert_eq!((request.output, request.item_types), (Some(Output::Items), Some(vec!["book".to_owned()])));
    let prompt = Prompt::new(Task::Search, Subject::Query("dune".to_owned()), None);
    assert_eq!(text(&prompt.parts()), "Find an item.\nQuery: dune\nTarget item type: any\nOutput: items");
    let prompt = Prompt::new(Task::Describe, Subject::Item("film:alien".to_owned()), Some("film"));
    assert_eq!(text(&prompt.parts()), "Describe the item.\nItem: []\nOutput: text");
    assert_eq!(prompt.request().item_types, None);
    assert!(Task::named("seek").unwrap_err().to_string().contains("search, recommend"));
}

/// The page of the server composes the same prompts.
#[test]
#[cfg(feature = "server")]
fn the_page_asks_in_the_same_words() {
    let page = include_str!("../server/page/page.js");
    for task in [Task::Search, Task::Recommend, Task::Explain, Task::Describe, Task::Profile] {
        let first = wording::instructions(task).first();
        assert!(page.contains(&format!("\"{first}\"")), "page.js does not say {first:?}");
    }
    for line in [
        "\\nTarget item type: ${type || \"any\"}",
        "\\nOutput: ${output()}",
        "Query: ",
        "History: ",
        "Item: ",
    ] {
        assert!(page.contains(line), "page.js does not write {line:?}");
    }
}

#[test]
fn mixes_are_shares_and_add_up() {
    let mix: Mix = "search=4,recommend=3, explain=0.5".parse().unwrap();
    let works = works();
    let histories = histories(&works);
    let sampler = Sampler::new(&works, &histories, Split::Train, 1);
    let plan = sampler.plan(&mix, 1000).unwrap();
    let count = |task| plan.iter().filter(|(of, _)| *of == task).count();
    assert_eq!(plan.len(), 1000);
    assert_eq!([count(Task::Search), count(Task::Recommend), count(Task::Explain)], [533, 400, 67]);
    // Each number once.
    assert_eq!(plan.iter().collect::<HashSet<_>>().len(), 1000);
    for bad in ["seek=1", "search=0", "search=-1", "search=x", "search=1,search=2", ""] {
        assert!(bad.parse::<Mix>().is_err(), "{bad}");
    }
    let none = Sampler::new(&works, &[], Split::Train, 1);
    assert!(none.plan(&mix, 10).unwrap_err().to_string().contains("histories"));
}

#[test]
fn every_work_and_every_history_gets_its_turn() {
    let works = works();
    let histories = histories(&works);
    let sampler = Sampler::new(&works, &histories, Split::Train, 3);
    let n = works.all().len();
    for round in 0..2 {
        let seen: HashSet<usize> = (round * n..(round + 1) * n)
            .filter_map(|number| sampler.sample(Task::Find, number).target)
            .collect();
        assert_eq!(seen.len(), n, "round {round}");
    }
    let people = sampler.histories();
    let seen: HashSet<Vec<usize>> =
        (0..people).map(|number| sampler.sample(Task::Profile, number).taken).collect();
    // Beginnings of two histories may be alike, whole ones are not.
    assert!(seen.len() > people * 9 / 10, "{} of {people}", seen.len());
    assert_eq!(sampler.sample(Task::Explain, 17), sampler.sample(Task::Explain, 17));
    assert_ne!(sampler.sample(Task::Describe, 0).target, sampler.sample(Task::Describe, n).target);
}

#[test]
fn what_answers_say_is_true() {
    let works = works();
    let histories = histories(&works);
    for split in [Split::Train, Split::Test] {
        let sampler = Sampler::new(&works, &histories, split, 5);
        let mut kinds = HashMap::new();
        for number in 0..600 {
            let sample = sampler.sample(Task::Explain, number);
            // Text between one item and the next is about the one.
            let mut about = None;
            for part in &sample.answer {
                match part {
                    Part::Item { id } => about = works.find(id),
                    Part::Text { text } => {
                        let said = claims(text, &works);
                        // Before the first item stands the reason, which the target and the history share.
                        let place = about.or(sample.target).unwrap();
                        assert!(said.hold_for(&works.all()[place]), "{}: {text}", works.all()[place].id);
                    }
                    _ => panic!("{part:?}"),
                }
            }
            let named = sample.answer.iter().filter(|part| matches!(part, Part::Item { .. })).count();
            *kinds.entry(named).or_insert(0) += 1;
            let target = sample.target.map(|place| works.type_of(&works.all()[place]).to_owned());
            assert_eq!(sample.prompt.target, target);

            let describe = sampler.sample(Task::Describe, number);
            let work = &works.all()[describe.target.unwrap()];
            let said = text(&describe.answer);
            assert!(said.starts_with(&format!("{} ({}) is a", work.title, work.year.unwrap())), "{said}");
        }
        assert!(kinds[&1] > 400 && kinds[&2] > 30, "{kinds:?}");
    }
}

#[test]
fn profiles_speak_of_the_history_alone() {
    let works = works();
    let histories = histories(&works);
    let sampler = Sampler::new(&works, &histories, Split::Train, 6);
    for number in 0..400 {
        let sample = sampler.sample(Task::Profile, number);
        let Subject::History(ids) = &sample.prompt.subject else { panic!() };
        let seen: Vec<&Work> = ids.iter().map(|id| &works.all()[works.find(id).unwrap()]).collect();
        let said = claims(&text(&sample.answer), &works);
        assert!(said.any(), "{:?}", sample.answer);
        assert!(said.genres.iter().all(|genre| seen.iter().any(|work| work.genres.contains(genre))));
        assert!(said.creators.iter().all(|name| seen.iter().any(|work| work.creator.as_ref() == Some(name))));
    }
}

#[test]
fn a_search_for_many_works_has_many_answers() {
    let works = works();
    let sampler = Sampler::new(&works, &[], Split::Train, 9);
    let (mut one, mut many, mut wrong) = (0, 0, 0);
    for number in 0..1000 {
        let sample = sampler.sample(Task::Search, number);
        let target = &works.all()[sample.target.unwrap()];
        let others: HashSet<&usize> = sample.others.iter().collect();
        assert_eq!(others.len(), sample.others.len());
        assert!(!others.contains(&sample.target.unwrap()) && others.len() < 8);
        let Subject::Query(query) = &sample.prompt.subject else { panic!() };
        // Whatever the query names is true of all of them.
        let said = claims(query, &works);
        for &&other in &others {
            let other = &works.all()[other];
            assert_eq!(other.item_type, target.item_type);
            let holds = said.decades.iter().all(|&decade| other.decade() == Some(decade))
                && said.genres.iter().all(|genre| other.genres.contains(genre))
                && said.creators.iter().all(|name| other.creator.as_ref() == Some(name));
            wrong += usize::from(!holds);
        }
        *(if others.is_empty() { &mut one } else { &mut many }) += 1;
    }
    assert!(one > 400 && many > 300, "{one} with one answer, {many} with more");
    assert_eq!(wrong, 0);
}

#[test]
fn every_item_of_a_history_is_learnt_behind_those_before_it() {
    let works = works();
    let histories = histories(&works);
    let sampler = Sampler::new(&works, &histories, Split::Train, 2);
    let items_of = |prompt: &Prompt| match &prompt.subject {
        Subject::History(ids) => ids.clone(),
        other => panic!("{other:?}"),
    };
    let mut all = 0;
    for number in 0..300 {
        let sample = sampler.sample(Task::Recommend, number);
        let shown = items_of(&sample.prompt);
        assert_eq!(sample.earlier.len(), shown.len() - 1);
        for (at, (prompt, place)) in sample.earlier.iter().enumerate() {
            let next = &works.all()[*place];
            assert_eq!((items_of(prompt), &next.id), (shown[..=at].to_vec(), &shown[at + 1]));
            assert_eq!(prompt.instruction, sample.prompt.instruction);
            assert!(prompt.target.as_deref().is_none_or(|target| target == works.type_of(next)));
            all += 1;
        }
    }
    assert!(all > 600, "{all}");
    let judged = Sampler::new(&works, &histories, Split::Test, 2);
    assert!((0..40).all(|number| judged.sample(Task::Recommend, number).earlier.is_empty()));
}

#[test]
fn queries_name_all_that_answers_them() {
    let works = works();
    let sampler = Sampler::new(&works, &[], Split::Test, 7);
    let place = works.find("film:alien").unwrap();
    let ids =
        |query: &Query| query.relevant.iter().map(|&at| works.all()[at].id.as_str()).collect::<Vec<_>>();
    let title = sampler.query(QueryKind::Title, place, None, 1).unwrap();
    assert_eq!(ids(&title), ["film:alien"]);
    let creator = sampler.query(QueryKind::Creator, place, None, 1).unwrap();
    assert!(
        creator.relevant.len() >= 11 && creator.text.to_lowercase().contains("ridley scott"),
        "{creator:?}"
    );
    let decade = sampler.query(QueryKind::GenreAndDecade, place, Some("Horror"), 1).unwrap();
    assert!(decade.text.to_lowercase().contains("horror") && decade.text.contains("1970s"), "{decade:?}");
    for &at in &decade.relevant {
        let work = &works.all()[at];
        assert!(work.genres.contains(&"Horror".to_owned()) && work.decade() == Some(1970), "{}", work.id);
    }
    assert!(decade.relevant.contains(&place));
    let prompt = sampler.search_prompt(&decade, place, 1);
    assert_eq!((prompt.target.as_deref(), prompt.task), (Some("film"), Task::Search));
}

#[test]
fn simulated_people_take_nothing_twice_and_have_tastes() {
    let works = works();
    let options = SimulationOptions { users: 1800, held_out: 200, seed: 4, ..SimulationOptions::default() };
    let histories = simulate(&works, &options);
    assert_eq!(histories, simulate(&works, &options));
    assert_ne!(histories, simulate(&works, &SimulationOptions { seed: 5, ..options.clone() }));
    assert_eq!(histories.iter().filter(|history| history.split == Split::Test).count(), 200);
    let (mut same_creator, mut pairs) = (0, 0);
    for history in &histories {
        assert!((5..=16).contains(&history.items.len()));
        assert_eq!(history.items.iter().collect::<HashSet<_>>().len(), history.items.len());
        let seen: Vec<&Work> = history.items.iter().map(|id| &works.all()[works.find(id).unwrap()]).collect();
        for pair in seen.windows(2).filter(|pair| pair[0].item_type == pair[1].item_type) {
            pairs += 1;
            same_creator += usize::from(pair[0].creator == pair[1].creator);
        }
    }
    // Of chance alone it would be about one in a hundred.
    let share = same_creator as f64 / pairs as f64;
    assert!((0.2..0.45).contains(&share), "{share}");
    // Everything is taken by somebody: no work is out of reach.
    let taken: HashSet<&String> = histories.iter().flat_map(|history| &history.items).collect();
    assert!(taken.len() > works.all().len() * 9 / 10, "{}", taken.len());
}

#[test]
fn histories_are_read_with_the_place_of_what_is_wrong() {
    let works = works();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h.jsonl");
    let good = r#"{"user": 1, "split": "test", "items": ["film:alien"]}"#;
    std::fs::write(&path, format!("{good}\n\n{good}\n")).unwrap();
    assert_eq!(read_histories(&path, &works).unwrap().len(), 2);
    for (bad, part) in
        [(r#"{"user": 1}"#, "split"), (r#"{"user": 1, "split": "test", "items": ["film:x"]}"#, "film:x")]
    {
        std::fs::write(&path, format!("{good}\n{bad}\n")).unwrap();
        let error = read_histories(&path, &works).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains(part), "{error}");
    }
}

#[test]
fn tokens_are_those_that_the_engine_feeds() {
    let works = works();
    let renderer = Renderer::spans(crate::demo::builder().unwrap()).unwrap();
    let engine = crate::demo::builder().unwrap().start().unwrap();
    let histories = histories(&works);
    let sampler = Sampler::new(&works, &histories, Split::Train, 8);
    let layout = engine.layout().unwrap();
    let eos = engine.tokenizer().eos().unwrap();
    for task in Task::ALL {
        for number in 0..20 {
            let sample = sampler.sample(task, number);
            let rendered = renderer.render(&sample, &works).unwrap();
            let served = engine.validate(&sample.prompt.request()).unwrap();
            assert_eq!(rendered.prompt_token_ids, served.tokens(), "{sample:?}");
            assert_eq!(rendered.answer_token_ids.last(), Some(&eos));
            if task.output() == Output::Items {
                // The engine opens the span; the answer is its codes and what ends it.
                assert_eq!(rendered.prompt_token_ids.last(), layout.open.as_ref());
                let item = engine.view().unwrap();
                let item = item.find(&works.all()[sample.target.unwrap()].id).unwrap();
                let span = layout.span(item.item_type(), &item.codes());
                assert_eq!(rendered.answer_token_ids[..span.len() - 1], span[1..]);
                assert_eq!(rendered.answer_token_ids.len(), span.len());
                let same = sample.others.iter().map(|&place| (None, place));
                let earlier = sample.earlier.iter().map(|(prompt, place)| (Some(prompt), *place));
                let expected: Vec<_> = same.chain(earlier).collect();
                assert_eq!(rendered.others.len(), expected.len());
                for (other, (prompt, place)) in rendered.others.iter().zip(expected) {
                    let view = engine.view().unwrap();
                    let item = view.find(&works.all()[place].id).unwrap();
                    let span = layout.span(item.item_type(), &item.codes());
                    assert_eq!(other.answer_token_ids[..], span[1..span.len() - 1]);
                    let served =
                        prompt.map(|prompt| engine.validate(&prompt.request()).unwrap().tokens().to_vec());
                    assert_eq!(other.prompt_token_ids, served);
                }
            } else {
                let written = engine.tokenizer().decode(&rendered.answer_token_ids);
                let plain: String = sample
                    .answer
                    .iter()
                    .filter_map(
                        |part| if let Part::Text { text } = part { Some(text.as_str()) } else { None },
                    )
                    .collect();
                assert_eq!(written, plain);
            }
        }
    }
}
