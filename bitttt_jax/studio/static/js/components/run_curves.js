// Curves of runs as the charts take them: colours, dashes and names.

import { t } from "../i18n.js";
import { smooth } from "../series.js";

const COLOURS = ["c1", "c2", "c3", "c4", "c5", "c6"];
const DASHES = [undefined, [8, 4], [2, 3]];

// Train as a line with the raw values faint behind it, validation as points: never by colour alone.
export function lossCurves(names, runs, smoothing) {
  return names.flatMap((name, index) => {
    const series = runs.get(name);
    const [train, held] = [series.get("train/loss"), series.get("eval/loss")];
    const prefix = names.length > 1 ? `${name}: ` : "";
    const colour = COLOURS[index % COLOURS.length];
    const second = names.length > 1 ? colour : "c2";
    const raw = smoothing ? [{ label: "", colour, ...train, faint: true, width: 1 }] : [];
    return [
      ...raw,
      {
        label: prefix + t("chart.train"),
        colour,
        step: train.step,
        value: smooth(train.value, smoothing),
      },
      { label: prefix + t("chart.eval"), colour: second, ...held, points: true, dash: [6, 4] },
    ];
  });
}

/** Curves of some tags [[tag, name], …] of all runs. */
export function tagCurves(names, runs, tags, smoothing) {
  return names.flatMap((name, place) =>
    tags.flatMap(([tag, label], index) => {
      const curve = runs.get(name).get(tag);
      if (!curve.step.length) return [];
      const several = names.length > 1;
      const colour = COLOURS[(several ? place : index) % COLOURS.length];
      const words = label.startsWith("chart.") ? t(label) : label;
      const long = tags.length > 1 ? `${name}: ${words}` : name;
      return [
        {
          label: several ? long : words,
          colour,
          dash: DASHES[index % DASHES.length],
          step: curve.step,
          value: tag === "lr" ? curve.value : smooth(curve.value, smoothing),
          width: 1.8,
        },
      ];
    }),
  );
}
