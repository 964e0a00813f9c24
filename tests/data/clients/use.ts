// Uses the types that openapi-typescript has generated. Arguments: the server's address and a key.
// Prints what was parsed, as JSON.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { argv: string[] };
type ImageStreamEvent = components["schemas"]["ImageStreamEvent"];

const [baseUrl, key] = process.argv.slice(2) as [string, string];
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${key}` } });
const stranger = createClient<paths>({ baseUrl });
const body = { prompt: "dog", seed: 5 };

function describe(event: ImageStreamEvent): [string, string | number] {
  switch (event.type) {
    case "image_generation.partial_image":
      return [event.type, event.scale];
    case "image_generation.completed":
      return [event.type, event.tandem.class_name];
    case "error":
      return [event.type, event.error.message];
  }
}

const made = await client.POST("/v1/images/generations", { body: { ...body, n: 2 } });
const streamed = await client.POST("/v1/images/generations/stream", {
  body: { ...body, preview_scales: [1, 3] },
  parseAs: "text",
});
const text: string = streamed.data ?? "";
const events = text
  .trim()
  .split("\n\n")
  .map((block) => JSON.parse(block.split("\ndata: ")[1] ?? "") as ImageStreamEvent);
// @ts-expect-error: streams have an operation of their own
const wrong = await client.POST("/v1/images/generations", { body: { ...body, stream: true, cfg: -1 } });
const refused = await stranger.GET("/v1/models");
const models = await client.GET("/v1/models");

console.log(
  JSON.stringify({
    images: made.data?.data.map((image) => image.b64_json),
    class: made.data?.tandem.class_name,
    events: events.map(describe),
    wrong: [wrong.response.status, wrong.error?.error.param],
    refused: [refused.response.status, refused.error?.error.code],
    models: models.data?.data.map((model) => model.id),
  }),
);
