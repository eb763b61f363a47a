// Loading a model: a process of its own is started for it, or one that is there is used.

import { get, post, segment } from "../api.js";
import { t } from "../i18n.js";

const LOOK_MS = 500;

/** Waits until a model can be talked to; `tell(words)` says how far it is. */
export async function loadPlayer({ model, step, device }, tell, signal) {
  tell(t("play.loading"));
  const { players } = await get("play", {}, { signal });
  const isWanted = (player) =>
    player.model === model &&
    player.device === device &&
    (step === null ? !player.pinned : player.pinned && player.step === step);
  const there = players.find((player) => player.state === "ready" && isWanted(player));
  const id = there?.id ?? (await post("play", { model, step, device }, { signal })).id;
  const started = Date.now();
  for (;;) {
    const player = (await get("play", {}, { signal })).players.find((other) => other.id === id);
    if (!player) throw new Error(t("play.gone"));
    if (player.state !== "loading") return player;
    tell(t("play.loading_for", { n: Math.round((Date.now() - started) / 1000) }));
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    signal.throwIfAborted();
  }
}

/** The address of a pane's stream. */
export const streamPath = ({ player, stream }) =>
  `play/${segment(player.id)}/streams/${segment(stream)}`;
