import { drive as driveClient } from './js-client.mjs';

export const drive = (setup) => driveClient(setup, { logEventCompressionMode: 'f' });
