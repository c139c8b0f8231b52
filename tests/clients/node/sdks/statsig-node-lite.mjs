import Statsig from 'statsig-node-lite';
import { USER } from '../odd-events.mjs';

export async function drive({ events, relay, specs }) {
  await Statsig.initialize('secret-driver', {
    api: relay,
    apiForDownloadConfigSpecs: `${specs}/v1`,
    disableIdListsSync: true, // it asks `api` for them, and has no option to ask elsewhere
    initStrategyForIDLists: 'none',
    loggingMaxBufferSize: 100,
  });
  Statsig.checkGateSync(USER, 'a_gate');
  Statsig.getConfigSync(USER, 'a_config');
  Statsig.getLayerSync(USER, 'a_layer').get('size', 0);
  for (const { name, value, metadata, user } of events) Statsig.logEvent(user === undefined ? USER : user, name, value, metadata);
  await Statsig.flush();
  Statsig.shutdown();
}
