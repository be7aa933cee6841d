"""Common English words, from public-domain tales and from everyday errands, for the text tasks."""

from sfumato.tasks.base import listed

WORDS: tuple[str, ...] = listed(
    """
    tell while green thing white find morning called water knew child another going boy look every
    forest hand whole next children each room world lay however left something done bird most own
    our wood princess right replied young enough side gone until flew same son under bed brought
    cannot without eat red behind shoes evening yet always fast gold seen looking seemed work sun
    ever golden cut wish daughter even voice also place end castle feet things sitting country
    horse help hair these far both air walked better anything moment flowers face life soldier felt
    turned fire window sure everything lived trees dear asleep bring full grew carried laid care
    want fine near high garden happened passed along keep wanted run court longer being became thou
    really hands pretty shadow rest open live around small close cat sleep myself big hear ask
    table opened others years black don cook carry lady themselves queen road rose afraid half wolf
    ground light mind glass indeed certainly leave standing men true those new clothes try master
    arms wished maiden use happy tailor dog cold bear land spoke hard times alone held bread given
    dark among best ready strange why piece nor because lying taken sent dwarf fall led drink
    course pleased four wind neck palace lost kind fox prince word wild hold speak third matter
    followed against met drew free glad else second town forth rather middle birds story days threw
    flower body friend silver blue snow brains though ate able frightened youth towards journey
    saying corner yourself sea does branches bride straw tired feel words name mouse legs become
    money top few tears already dance joy warm friends kept thy axe peasant cow whether tried
    coming jumped bright seven tone short pieces kingdom thee sprang having thinking wept sit shone
    yes wine yellow earth sort twelve foot brother mouth fish pass quickly danced husband beside
    reached walk dressed kitchen caught wall sister deep read fairy fellow rich anyone gate ought
    pocket hung finger running between returned therefore suddenly across wonder hurt please angry
    ring lie used floor sang sing love learned part river thus church fear heads shut order heavy
    wonderful slept trouble leaves almost won fetch hundred grass laughed ill forced servant rode
    witch itself hole roof lovely stay nearly loud above stand moon married power street huntsman
    getting straight bit sight tail pulled death turn sweet obliged dress return seized stone
    perhaps answer waiting remained continued shook stopped draw although skin merry brothers beard
    miller empty mice walking low apple bad understand begged added grown outside dish farther fly
    whom spring shudder drove awoke feast afterwards either remember eaten beasts waited hardly
    learn placed ordered least stretched none length kissed maid chamber wicked pick dream real
    below sharp comes wide year nodded splendid started fallen sound suppose talk believe hour
    doing arm knocked within exclaimed bottom pot agreed ball fresh eldest food making finished
    minute pair struck cry show wait courage song neither seeing bell wedding hill giant book watch
    tea ears box deal whose call nobody broken goose appeared fat often inside beast die everyone
    windows art rolled youngest knife forgotten person grow exactly easily sighed carefully picked
    wings clock alive marry entered covered carriage cottage loved luck eye knows play promised sad
    sky clever blow remarked creature roses played died lifted dancing shepherd need horses basket
    stuffed field happen filled written begin makes boots harm noise safe lives crept handsome
    front send spot iron leg talking dry sadly curious nearer throw frog tale since reason apples
    doubt sorry singing royal ladies walls cloak greatly sparrow hot stairs idea nice reach bye
    changed different spread cross winter liked dare nose girls pig listened cloth city persons
    shot boat poet sunshine tower showed fields lion larger queer goes mine shining change move
    mean pity possible quietly wants besides someone spectacles silk terrible touched cap step
    steps built woods sleeping fisherman late plenty miles several seem question except key size
    crying slipped beg soft dinner animals party easy lonely stop hungry broke everybody beat ugly
    soldiers opposite company delightful summer rain peas strong stuck coat bush huntsmen tin
    cellar balloon travelers beginning thousand learnt hall feeling anxiously growing case houses
    known turning ones whatever taking thick instead inquired hat lord servants drank peace
    mountain cage forward climbed ashes collar bow bank burning sides listen doors rate shoulders
    certain game fond clear dogs shore laugh jury tomorrow dreadful star manner unless thrown
    thoughts duck wore yard charm ice vain painted path stones seek thither likewise grieved
    distance surprised sounded sudden says declared means meaning moved save unhappy surprise cart
    screamed mad butter helped proud blew flying surely scarcely wretch peeped past hope bottle
    wise hurry minutes forgot wrong wooden quiet bent business edge present baby chair living
    watched faithful dirty worked color pewter higher service visit robber gardener saved shoe
    toward stupid slowly trying cake hastily seems brown farmer wet bowed directly stick strength
    soup raised raven cup promise account entirely fair throne reality looks midst princesses
    village friendly lands beneath stars bade pushed nuts gathered pleasure managed fancy row burnt
    further dropped worse animal sorrowful creatures knowing grave lips magic terribly grey follow
    ear meant closed search form bound kindly tied strangers office gentleman following stream
    watchman weep pay pray heaven oil guest salad lies tall hunger lucky aloud milk alas paper
    playing holding gloves six ago family fur allow caused breath shouted eggs loudly less teeth
    break eating clean kiss forget school thanked meat unable ourselves colors single balcony sake
    lighted supper fingers fortune dove weather needle clerk human early fastened draught stayed
    sledge robbers bargain willingly wear juniper enemy dwarfs miser china twice worth somebody
    manage heap taste remembered dried usual doesn five escape speaking history pale meet angrily
    pointed plate upstairs thank telling hid remain haste meal lights rooms broad satisfied beer
    hidden evil hastened rage bought bees lake powerful apron paid desire task safely desert giants
    calf brick pole chain noticed grand catch cats truth beds roast ten common lap gently number
    fright sits eagerly pope silence judge reply tongue suit vanished tales trembled hearing ladder
    rope swallowed bark rushed sell stuff repeated otherwise takes dreadfully shoulder sisters
    hearts whispered pleasant rock cheeks seated sheep charming streets stepped arose gazed happily
    leather sword greatest travelling clouds flesh jump cask comb marriage ale betrothed sons
    cheese bigger parson sack gray hurried didn sometimes locked fact advice happens nine sir age
    fixed shape trial direction whenever coward cakes crowd bones tasted nest dishes enjoy treated
    music merrily rule screaming fight anxious bite flock figure mark join received arrived bells
    worn belonged travelled during fetched willing maidens nature fruit tear storm pull grows stove
    related perched planted courtyard beauty ride crows stands thirsty born everywhere pillow doves
    carter wheels dragon cyclone joints pictures falling drop likely capital wherever swimming
    softly feathers older venture hunting chance delighted forwards perfectly shaking remark grant
    branch poured faces guests procession uneasy feather picture fit washed badly wishes folks
    suffer silly ease grief unknown flies soul gets sought mountains coffin tore blooming rough
    flames rocks sweetheart reward riding cupboard corn pearls false counsel countryman earn danger
    meadow hay merchant doctor curiosity wouldn whiskers fitted cool decided pool sorts twenty
    trembling crown melancholy forehead swim chimney wasn wandered plan touch timidly puzzled
    highest silent settled drive faster hours appear spoken watching passing yours cost sorrow
    tones boldly emperor looms discover announced greater swineherd kisses served properly coach
    colored eight finest comrades rejoicing knees chest shoemaker daylight travel stomach torn
    stable flakes waves amongst willow melted ship mill buy allowed geese thieves brook hills
    comforted hazel command fierce raft listening begun earnestly longed simple finding altogether
    nonsense ashamed repeat burst nicely refused important explain prize speech finish lose nowhere
    knocking ceiling instantly hit spite difficult egg letter smoke hearth missed proper invited
    ravens opinion jug carrying diamonds bore imagine understood prisoner honest whilst noble
    intended bushes shop driving leaf powers awake spirit sick glasses heat noon strike birth bosom
    backwards stories companions dragged wisdom stranger chairs chopped boiled wolves pure offered
    nut warmed winds dared confirmed shoot kindness astonished match terrified mercy princes
    daughters enchanted sausage woodman manikin mayor barrel roar natural lessons wondering tiny
    locks delight marked burn deeply climb generally scolded presents fan crossed claws cause
    lesson pardon paws offended politely circle fifth throat expected fancied write giving state
    figures extremely waving fun quick learning smiled cards keeping shade lazy tails spell stole
    witness miserable secret fluttered dreamed believed delicate thread imagined holes vexed dwelt
    tune slipper cast saving fulfilled boxes behold aside dreams joke police string pain rid morrow
    frozen tender spirits gift creeping inn whither rested mighty happiness silken enter rejoiced
    parents choose angels sticking whistled precious dearest driven brightly frock rusted tiresome
    spinning wheel goat reigned tap seat comrade hast bid loss stir kinds awakened boar spindle
    meantime spin steak summoned jewels band talers fiddler sexton truck reading picking wondered
    brave knowledge couldn legged belong lock doorway later sharply smaller odd kid yesterday
    narrow chin swam washing offer pressed calling handed gravely choked joined mistake neat crash
    sense height weak knock jumping shake cutting sigh wash pinched drinking drawing today places
    moral buttons boon guard wrote bag overcome setting invisible pretended possess scissors smelt
    boiling weg cooking thrust fairies gloomy galoshes bridge language wondrous talked dost careful
    flight fifty formed celebrated fate trap coal presence delicious heavens longing dashed
    withered former pecked amusing heartily herd brilliant lions glittered mirror pots fowls
    bitterly cows pipe kerchief soundly serve rang rosy carved prayed destroy shalt marble forever
    clumsy midnight stolen monster wounded dearly bridegroom idle thief fool cooked wishing
    peasants fiddle funny sticks impossible sooner possibly croquet opening directions darkness
    guess drowned subject passion notice solemnly hide race voices pointing presented confusion
    patted cunning quicker executed brass hoped foolish sounds moving pigs excellent heels mushroom
    haven anger chose rise weeks matters considered growl chop thoroughly prevent writing breathe
    names consented begins gardeners velvet knee laughing fighting arrow bitter tremble toes
    whiting snail slates officers thin verses push spent weavers working glorious roll sewed mantle
    train buried fragrance knight pigsty dresses swung perform observe anxiety worthy war ships
    gentle future therein student space sin sparkling lightning peep yonder streamed sore copying
    pile crow ditch companion mistress fruits seeking thousands beyond treasures berries hither
    splendor brightness burned cracked downstairs grain needed wrapped chickens swing stronger
    determined tame shabby guards grateful deeper spit leapt elder afternoon polished point thorns
    deer smooth shelf weeping girdle oven battle ripe gallows shame wand presently biggest behave
    pin joyfully loaf trunk scent fill start kids witches oiled obey leader occurred hedge asking
    passage letters taught candle flame largest grin jaws putting salt general hadn leap shrill
    nurse rising meeting solemn bend particular lest drunk effect elbow curled comfort books tie
    pebbles puppy paw folded isn feared wretched merely tops pigeon roots sneezing stool pepper
    throwing plates line tight respect month fourth crumbs upset flat courtiers recognised roared
    hedgehog sugar squeezed agree rubbed simpleton week lobsters beloved purpose adventures baked
    gay oop officer mischief affair purple busy loving chase unfit throughout minister praised
    borne pains clapped view neighbor blessed whoever slippers condition market forms younger lamp
    probably discovered formerly according dust expect threatened sleeve force gentlemen stretch
    troop condemned weary contented falls somewhat million hospital darling treasure trick whence
    permission strangely organ drops beheld leads richly awaken chirping hopped gardens sold plants
    cared rags smell build sailed glittering hare crowns candles nights thoughtful bacon boys lump
    valley descend gates afar naughty spoiled pigeons innocent surrounded meadows moss scratched
    sparkled sung brighter sees lid manor ant thine garter hearted bundle drawn pail kings
    dangerous snoring swiftly mounted homewards plucked hath wren overjoyed harnessed rampion goods
    misfortune journeyed fairest fare news welcomed ruled pins breakfast cornfield rust poppies
    emeralds humbug pink actually somewhere lamps inches fountains lately rules poison dull
    trotting violently waters welcome fishes smiling measure declare lodging notion sentence
    belongs useful assembled accustomed simply sighing law temper mentioned shriek pulling loose
    slate kick shower guinea difficulty whistle barking limbs beak questions content crawled taller
    violent immense serpent bringing staring howling kettle stirring grinned blows busily verse
    stays slightest twinkling leading paint jogged pack marched scream act likes dig hollow stiff
    anywhere explained share treat cares breeze tarts evidence prove sign dreaming sorrows rogues
    property messenger costly needles price pitch plain amuse contained serious freed huge firmly
    coarse cheerful vast distinctly lieutenant sunk calm misery slip bodies rolling fiery perceived
    imitate aunt skill owner stately decked snake upper uttered latter songs observed lakes liberty
    happiest load hats sting suffered alighted coachman quarters instant ended dread couch loft
    leaned shown honey dazzling square slender float gown saloons behaved lead hen loaves heath
    bears widow mild cover plot sweetly minds owl wiser beam message knights gowns drawers snails
    burdocks ants paces roads wilt jack cruel matches drag thirst angel closet entire missing
    wealth stock butcher grinder trade letting troubles musician broth barked overtook dainty
    revenge lot destroyed eleven thicket hatchet parlour harness cousin godmother emptied breezes
    silvery millstone cord spun forester stroke request horsemen goodbye searched devour sprinkled
    daybreak hut bowl mass seventh poisoned chattering clack gazer scarlet cabin paved tinsmiths
    ruler milkmaid sleepy rabbit stopping maps tumbling showing bats solid curtain printed
    unpleasant ventured nervous severely pretend creep stockings shan splendidly muttering hoarse
    neatly existence speed wink feelings catching crowded sulky proceed smile position chorus
    confused complained whisper pleaded stoop shouldn forgetting attempt honour lad worry tumbled
    tricks hookah couple lasted patiently underneath closely alarm flown beating banks frighten
    livery louder muttered whistling terror pleases pan steam grunted bough growling cushion
    resting meekly twinkle alarmed treacle sulkily entrance eager backs meanwhile balls chief
    flamingo tucked furious shouting collected vinegar worried hers delay mouths follows lark
    tipped mile rustled shared rustling weave troubled impostors design named necessary aware robes
    bedchamber prettily humor chatter add female striking honor mankind naturally sank pavement
    possession grumbling hackney flowed public halls examined fully published approached distress
    enjoyed uniform situation moves newly towers rank glided haunted informed cured bars quarter
    stout shooting crooked retained holy altar gladly revealed mistaken lively bath anybody papers
    hero receive celebrate sail proof copper heated slyly hem rascal fragrant fed obeyed familiar
    purse waved truly resembled blind bare travellers roasted blessing fir felled carts gilded
    foliage plant shelter sprite increased splinter vegetables melt hymn winked wreath combed board
    hind rays bolt staircase attendants horseback plump lamb crack kicked wound bind burns laying
    seaman dragging blocks deserve boot fiftieth mane women clergyman jacket depths strangest
    rattled wars wiped burdock thorn pluck bidding horror occasion mahogany psalm landlord screen
    rings recover health masters concealed fountain chandelier sew smart thankful stall contrive
    lift job favour stooped parted scampered handful escaped peck baker token tossed cave oxen
    bounded greenwood unwilling devoured rue fiercely wipe pricked stirred bury dug steal desired
    fewer resolved injury bar unicorn yourselves scattered trough hiding chicken hearty skins
    recognized swept spare wares gracious beaten bench goldsmith arts craft griffin commands sweep
    tan forgive ante bucket mishap bondage fences fence protect tigers twisted spider ignorant miss
    hurrying telescope hoping mixed cherry eats sending reaching pattering timid puzzling
    cheerfully shrinking rapidly bathing sand nasty argument earls shiver frowning panting despair
    luckily thimble elegant theirs knot growled guessed completely proved frame yer frames
    fireplace rattling smallest enormous smoking clearly remarks brain steady decidedly upright
    swallow succeeded serpents nibbling leaning cauldron advantage hint wow tossing howled shaped
    twist seriously startled using civil works tells spoon concert fellows ways woke chanced
    checked bowing remaining execution laughter ridges arches expression players turns appearance
    fairly quarrel oneself removed engaged helpless prison sour sentenced leaving pitied calmly
    sink relief afford prettier holiday twelfth sobs recovered partner porpoise impatient gained
    uncommon fork ootiful justice wig jurors verdict deny suppressed newspapers examine jurymen
    dismay accident shock gazing note character theatre approach exquisite worst majesty undressed
    innocence appointed heel sixth torrents trickled bedroom continue poetical warmly mere severe
    group handle rocking fro stared groaned degree heed pitcher supported suited meets fail floated
    fortunate perfect soles famous class lain furnished poetry canst tonight thinks rejoice
    exchange sheer boats similar beings skilful deceived cleverness trust expressed motionless
    asserted separated thickest railings dawn motion greet rows cease poem displayed audience witty
    adventure trip aged cure difference guarded mental faithfully garret accord gradually
    tremendous gaily poets shoots frost dim northern forbidden cruelty dame covering boughs horn
    aim leathern sewn gloom forests gnats plague horrid grove pursued curtains brink departure
    autumn ornament tables hundreds sparrows blazed leaped reflected gutter twined amusement colder
    countries shed finer blowing odour season wanting watered robe holds puts ties barefooted
    dreary intention abashed flowing satin rushing muff dazzled embraced cracks snored flask starve
    hence bravely fared confessed foreign attention dwelling gallop oak blossoms fowl barn croaking
    glowing faded belly errand cranky tailors eagle dock shell gives weight overtake demand tub
    wisely entice bond heavily poodle pride custom towns nail wisest pierced stillness urchin
    advanced frogs curling unto fools runs count bridges tapped wages spray counted saddle bestow
    befallen roguery heir laundry pasta pizza coffee dentist report budget project deadline invoice
    email phone laptop keyboard monitor camera battery charger wallet backpack umbrella sneakers
    bicycle scooter airport hotel passport ticket museum festival workshop seminar lecture exam
    homework yoga gym workout tennis football soccer basketball hiking picnic barbecue birthday
    anniversary graduation interview conference webinar training review planning standup rehearsal
    recital vaccine pharmacy groceries rice noodles salmon muffins cookies pancakes waffles yogurt
    smoothie juice lemonade espresso latte mocha headphones speaker printer scanner router tablet
    desk sofa mattress blanket toaster blender microwave freezer vacuum heater drill hammer
    screwdriver brush notebook pencil marker stapler envelope calendar agenda software update
    release backup server database network password payment refund discount coupon parking garage
    engine tire brake playlist guitar piano violin drums jazz techno blues podcast movie cinema
    theater gallery library bathroom lounge basement attic terrace numbers digits meters kilometers
    format system press array conversion date text make type extract convert extra solve degrees
    quantity many currency product timer tool tools artist event temperature title author pet
    people time seconds monday tuesday wednesday thursday friday saturday sunday january february
    march april may june july august september october november december data code file test
    example list notes page photo video team contract bill receipt delivery package parcel card
    cash tax rent lease visa insurance assistant engineer manager repair support customer client
    status demo launch sprint sync lunch brunch snack onion garlic tomato potato carrot banana
    orange lemon mango grape melon chocolate vanilla pie candy mom dad uncle grandma grandpa boss
    teacher driver plumber electrician haircut checkup surgery therapy medicine pills vitamins the
    and for with not but all this that from have will your are was
    """
)
