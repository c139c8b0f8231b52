// Logs the odd events with one SDK: node drive.mjs SDK RELAY_PORT SPECS_PORT; says on stdout, as JSON, which it logged.

import { oddEvents } from './odd-events.mjs';

const [sdk, relayPort, specsPort] = process.argv.slice(2);
const { drive } = await import(`./sdks/${sdk}.mjs`);
const events = oddEvents();
await drive({ events, relay: `http://127.0.0.1:${relayPort}/v1`, specs: `http://127.0.0.1:${specsPort}` });
process.stdout.write(JSON.stringify(events.map((event) => event.name)));
