use super::*;
use crate::ImageSource;
use crate::testing::{Memory, noise};

const AHEAD: ReadAhead = ReadAhead { threads: 2, batches: 2 };

fn recipe(crop: Crop, side: u32, max_unreadable: f64) -> DataRecipe {
    let augmentation = Augmentation::none();
    DataRecipe { source: ImageSource::Emoji {}, side, crop, augmentation, max_unreadable }
}

fn opened(memory: Memory, max_unreadable: f64) -> Result<Images, String> {
    let recipe = recipe(Crop::Exact {}, 2, max_unreadable);
    Images::from_dataset(Box::new(memory), &recipe, AHEAD).map_err(|error| error.to_string())
}

#[test]
fn emoji_are_what_they_were_before_they_were_cropped_and_read_ahead() {
    let augmentation = Augmentation {
        shift: 0.06,
        scale: [0.9, 1.1],
        flip: 0.5,
        flip_except: vec!["Symbols".into(), "Flags".into()],
    };
    let recipe = DataRecipe { augmentation, ..recipe(Crop::AdmCenter {}, 32, 0.0) };
    let images = Images::open(&recipe, AHEAD, &|| ()).unwrap();
    let stage = SeedTree::new(0).child("tokenizer");
    let emoji = crate::Emoji::new(32).unwrap();
    let train = Split::every_tenth(emoji.len()).train;
    let mut order = EpochOrder::new(stage.child("order"), train.len());
    let mut position = 1710;
    for batch in images.training(stage, position, 8).take(2) {
        let batch = batch.unwrap();
        for (i, image) in batch.images.iter().enumerate() {
            let index = train[order.index(position)];
            let stream = stage.child("image").at(position);
            let class = &emoji.classes()[emoji.label(index)];
            let original = emoji.image(index).unwrap();
            let expected = recipe.augmentation.apply(&original, class, stream.child("augment"));
            assert_eq!(*image, expected);
            assert_eq!((batch.labels[i], batch.indices[i]), (emoji.label(index), index));
            assert_eq!(batch.streams[i], stream);
            position += 1;
        }
    }
    let held_out = |n| images.held_out(n, 64).flat_map(|batch| batch.unwrap().indices);
    assert_eq!(held_out(0).collect::<Vec<_>>(), Split::every_tenth(emoji.len()).held_out);
    // 190 held-out images: places 0, 63 and 126.
    assert_eq!(held_out(3).collect::<Vec<_>>(), [9, 639, 1269]);
    assert_eq!(held_out(1000).count(), 190, "as far as there are any");
    let first = images.held_out(0, 4).next().unwrap().unwrap();
    assert_eq!(first.images[3], emoji.image(39).unwrap());
    // Variants by record, with streams of their own.
    let variants = images.variants(stage, 2, 5..7).unwrap();
    assert_eq!(variants.indices, [train[2], train[3]]);
    assert_eq!(variants.streams, [stage.at(2).at(1), stage.at(3).at(0)]);
}

#[test]
fn parts_of_steps_are_those_of_the_whole() {
    let images = opened(Memory::numbered(40, 2), 0.0).unwrap();
    let stage = SeedTree::new(1);
    let read = |loader: Loader, n: usize| -> Vec<Vec<usize>> {
        loader.take(n).map(|batch| batch.unwrap().indices).collect()
    };
    // Five micro-batches of 2 a step, of which a process has those from 1 to 3.
    let whole = read(images.training(stage, 20, 2), 15);
    let part = Part { of: 10, from: 2, to: 8 };
    let shared = read(images.training_part(stage, part, 12, 2), 9);
    let expected: Vec<Vec<usize>> =
        [1, 2, 3, 6, 7, 8, 11, 12, 13].map(|i: usize| whole[i].clone()).to_vec();
    assert_eq!(shared, expected);
}

#[test]
fn what_others_found_unreadable_counts() {
    let images = opened(Memory::numbered(40, 2).with_broken(&[20]), 0.05).unwrap();
    images.training(SeedTree::new(1), 0, 36).next().unwrap().unwrap();
    let other = opened(Memory::numbered(40, 2), 0.05).unwrap();
    let found = images.take_found();
    assert_eq!(found.iter().map(|found| found.index).collect::<Vec<_>>(), [20]);
    other.adopt(found.clone()).unwrap();
    other.adopt(found).unwrap();
    assert_eq!((images.take_warnings(), images.take_found()), (other.take_warnings(), vec![]));
    assert!(other.take_found().is_empty(), "nothing goes to and fro");
    let more = [21, 22].map(|index| FoundUnreadable {
        index,
        image: format!("image {index}"),
        reason: "torn".into(),
    });
    let error = other.adopt(more.to_vec()).unwrap_err().to_string();
    assert!(error.contains("3 of 40 images cannot be read, 2 may be"), "{error}");
}

#[test]
fn training_crops_anywhere_and_held_out_images_in_the_center() {
    struct One;
    impl Dataset for One {
        fn len(&self) -> usize {
            2
        }
        fn classes(&self) -> &[String] {
            const { &[String::new()] }
        }
        fn label(&self, _: usize) -> usize {
            0
        }
        fn name(&self, i: usize) -> String {
            i.to_string()
        }
        fn stored_bytes(&self, _: usize) -> u64 {
            1
        }
        fn image(&self, _: usize) -> Result<RgbImage, DataError> {
            Ok(noise(40, 50))
        }
    }
    let crop = Crop::AdmRandom { min_share: 0.88 };
    let images = Images::from_dataset(Box::new(One), &recipe(crop.clone(), 16, 0.0), AHEAD);
    let images = images.unwrap_or_else(|error| panic!("{error}"));
    let stage = SeedTree::new(4);
    let batch = images.training(stage, 5, 20).next().unwrap().unwrap();
    for (i, image) in batch.images.iter().enumerate() {
        let draws = stage.child("image").at(5 + i as u64).child("crop");
        assert_eq!(*image, crop.training(noise(40, 50), 16, draws).unwrap());
    }
    assert!(batch.images.iter().any(|image| *image != batch.images[0]));
    let held_out = images.held_out(0, 1).next().unwrap().unwrap();
    assert_eq!(held_out.images[0], crop.evaluation(noise(40, 50), 16).unwrap());
}

#[test]
fn what_a_user_ought_to_know_is_said_before_a_run() {
    let mut memory = Memory::numbered(20, 4);
    // Class 1 has one image, the ninth, which is held out; class 3 has none.
    memory.labels = (0..20).map(|i| if i == 9 { 1 } else { i % 2 * 2 }).collect();
    memory.notes = vec!["of the source".into()];
    memory.left_out = vec![LeftOut { why: ".heic".into(), count: 2, first: "a.heic".into() }];
    let images = opened(memory.clone(), 0.0).unwrap();
    let expected = "trains on 18 images of 4 classes, 2 held out; \
                    2 files left out: 2 .heic (first: a.heic)";
    assert_eq!(images.summary(), expected);
    let classes = "data.source: 2 of 4 classes have no training image: \
                   'class 1' (1 held out), 'class 3' (no image)";
    assert_eq!(images.notes(), ["of the source", classes]);
    // What is not there is known at once, and counts.
    memory = Memory::numbered(20, 1).with_broken(&[3, 4]);
    (memory.bytes[3], memory.bytes[4]) = (0, 0);
    let images = opened(memory.clone(), 0.1).unwrap();
    assert_eq!(images.summary(), "trains on 18 images of 1 class, 2 held out");
    let missing = "data.source: 2 of 20 images are missing or empty and will be passed over: \
                   image 3 (torn), image 4 (torn)";
    assert_eq!(images.notes(), [missing]);
    let error = opened(memory, 0.05).err().unwrap();
    assert!(error.contains("2 of 20 images cannot be read, 1 may be: image 3 (torn)"), "{error}");
}

#[test]
fn unreadable_images_are_named_once_and_too_many_stop() {
    let images = opened(Memory::numbered(40, 2).with_broken(&[9, 19, 20]), 0.075).unwrap();
    let named = |i: usize, found: usize| {
        format!(
            "image {i}: not a readable image (torn); replace or remove it; \
             the next image takes its place ({found} of 40 unreadable, 3 allowed)"
        )
    };
    assert_eq!(images.take_warnings(), [named(9, 1), named(19, 2)], "the first held-out ones");
    // Two epochs: image 20 is passed over twice.
    let batch = images.training(SeedTree::new(1), 0, 72).next().unwrap().unwrap();
    assert_eq!(batch.images.len(), 72);
    assert!(!batch.indices.contains(&20));
    assert_eq!(images.take_warnings(), [named(20, 3)]);
    assert_eq!(images.held_out(0, 4).next().unwrap().unwrap().indices, [29, 29, 29, 39]);
    assert!(images.take_warnings().is_empty());

    let images = opened(Memory::numbered(40, 2).with_broken(&[9, 19, 20]), 0.07).unwrap();
    let mut loader = images.training(SeedTree::new(1), 0, 36);
    let error = loader.next().unwrap().unwrap_err().to_string();
    let expected = "data.max_unreadable: 3 of 40 images cannot be read, 2 may be: \
                    image 9 (torn), image 19 (torn), image 20 (torn); \
                    replace or remove them, or raise data.max_unreadable";
    assert_eq!(error, expected);
    assert!(loader.next().is_none(), "nothing follows an error");
}

#[test]
fn what_no_run_can_start_with_is_refused() {
    let refused = |memory, share| opened(memory, share).err().unwrap();
    let error = refused(Memory::numbered(20, 2).with_broken(&[9, 19]), 0.5);
    let expected = "data.source: none of the 2 held-out images can be read: \
                    image 9 (torn), image 19 (torn); replace them";
    assert_eq!(error, expected);
    let all: Vec<usize> = (0..20).collect();
    let error = refused(Memory::numbered(20, 2).with_broken(&all), 1.0);
    assert!(
        error.contains("none of the 18 training images") && error.ends_with("..; replace them")
    );
    let error = refused(Memory::numbered(20, 2).with_broken(&all), 0.2);
    assert!(error.contains("5 of 20 images cannot be read, 4 may be"), "{error}");
    assert!(refused(Memory::numbered(1, 1), 0.0).contains("data.source: 1 images"));
    assert!(refused(Memory::numbered(9, 1), -0.1).contains("data.max_unreadable: -0.1"));

    let recipe = recipe(Crop::Exact {}, 3, 0.0);
    let memory = Box::new(Memory::numbered(9, 1));
    let error = Images::from_dataset(memory, &recipe, AHEAD).err().unwrap().to_string();
    assert!(error.starts_with("image ") && error.contains("is 2x2 px, not 3x3 as data.side"));
    let zero = DataRecipe { side: 0, ..recipe };
    assert!(Images::open(&zero, AHEAD, &|| ()).err().unwrap().to_string().contains("data.side: 0"));
}
